// Host memory that the GPU can read: what operator new gives out once start() has run, so that cases written for the
// CPU (vectors, Buffer) run on a device unchanged.
//
// One region of page-locked memory, or of managed memory with QUIRE_TEST_MEMORY=managed; cut into blocks of powers of
// two. Memory from before start() stays where malloc put it. Local variables are within reach too in what
// run_within_reach() runs; statics are not.
#pragma once

#include <string>

namespace quire::device_memory {

// "" or why there is no device to test on.
std::string start();

const char* kind();

// The result of body(), run by a thread whose stack is such memory.
int run_within_reach(int (*body)());

// While one lives, each allocation of this thread is one of the CUDA runtime of exactly its size, so that
// compute-sanitizer sees what lies outside of it; with QUIRE_TEST_EXACT=1, else it does nothing.
class Exact {
 public:
  Exact();
  ~Exact();
  Exact(const Exact&) = delete;
  Exact& operator=(const Exact&) = delete;
};

}  // namespace quire::device_memory
