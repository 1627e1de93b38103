// What the tests of kernels_simt ask of the emulation, on a GPU: thread orders (the device has its own) and counts.
#include "cuda/simt/engine.h"
#include "kernels_cuda/device_queue.h"

namespace quire::simt {

void set_order(Order, uint64_t) {}

Counters counters() {
  const device_queue::Launches launches = device_queue::launches();
  return {.launches = launches.launches, .threads = launches.threads};
}

}  // namespace quire::simt
