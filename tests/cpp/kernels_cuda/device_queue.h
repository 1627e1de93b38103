// Launches of the program under test, and when they are waited for.
//
// Tests written for the emulation take a kernel to be done when its launcher returns. Here each launch waits for its
// kernel, unless a Deferred lives: then kernels are queued as in production, with programmatic dependent launch between
// them, and finish() waits.
#pragma once

#include <cstdint>
#include <string>

#include "params/stream.h"

namespace quire::device_queue {

class Deferred {
 public:
  Deferred();
  ~Deferred();
  Deferred(const Deferred&) = delete;
  Deferred& operator=(const Deferred&) = delete;
};

// Waits for everything; a DeviceError if a kernel failed.
void finish();

// "" while the device works. After some errors (an illegal address, say) no call of this process can succeed: what
// ended it, for the tests that follow to name.
const std::string& failure();

struct Launches {
  uint64_t launches = 0, threads = 0;
};
Launches launches();  // of this process

}  // namespace quire::device_queue
