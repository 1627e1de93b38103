// See allocation_counter.h. The array forms call these; over-aligned memory is not counted.
#include "support/allocation_counter.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<int64_t> num_calls{0};
}  // namespace

void* operator new(size_t num_bytes, const std::nothrow_t&) noexcept {
  num_calls.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(num_bytes > 0 ? num_bytes : 1);
}
void* operator new(size_t num_bytes) {
  if (void* memory = operator new(num_bytes, std::nothrow)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }

int64_t quire::testing::num_allocations() { return num_calls.load(std::memory_order_relaxed); }
