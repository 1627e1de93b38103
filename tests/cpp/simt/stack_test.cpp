// What the stacks of the emulated threads leave behind.
#include <gtest/gtest.h>

#include <cstdint>
#include <thread>

#include "simt/orders.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace quire::simt {
namespace {

#if defined(__SANITIZE_ADDRESS__)
struct WhereArgs {
  uintptr_t* address;  // of something on the stack of thread 0
};

__global__ void where_kernel(const __grid_constant__ WhereArgs p) {
  volatile char local[64] = {};
  if (threadIdx.x == 0) *p.address = reinterpret_cast<uintptr_t>(&local[0]);
  __syncthreads();
}

// AddressSanitizer marks the gaps between variables of a frame, and does not see munmap: whoever got these pages next
// was told that it writes below some stack.
TEST(Stacks, PagesOfAThreadThatEndedAreCleanForOthers) {
  uintptr_t address = 0;
  std::thread launching([&] {
    set_order(Order::forward);
    launch<where_kernel>({.grid = dim3(1), .block = dim3(64)}, WhereArgs{&address});
  });
  launching.join();
  constexpr uintptr_t kBytes = 1024;  // around the variable, within its stack; asked of the shadow, not of the pages
  EXPECT_EQ(__asan_region_is_poisoned(reinterpret_cast<void*>(address - kBytes), 2 * kBytes), nullptr);
}
#endif

}  // namespace
}  // namespace quire::simt
