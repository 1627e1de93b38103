#include "kernels_cuda/device_memory.h"

#include <cuda_runtime_api.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <new>
#include <set>

namespace quire::device_memory {
namespace {

// Small against any card: managed memory beyond what a card has free can hang it.
constexpr size_t kRegionBytes = size_t{1} << 30;
constexpr size_t kSlabBytes = size_t{2} << 20;  // of blocks of one size; larger blocks take several slabs
constexpr size_t kNumSlabs = kRegionBytes / kSlabBytes;
constexpr int kMinShift = 6, kMaxShift = 30;

// Memory of the bookkeeping itself.
template <typename T>
struct MallocAllocator {
  using value_type = T;
  MallocAllocator() = default;
  template <typename U>
  MallocAllocator(const MallocAllocator<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(std::malloc(count * sizeof(T))); }
  void deallocate(T* p, size_t) { std::free(p); }
  bool operator==(const MallocAllocator&) const { return true; }
};

struct FreeBlock {
  FreeBlock* next;
};

struct State {
  std::mutex mutex;
  char* region = nullptr;
  size_t used_slabs = 0;
  std::array<uint8_t, kNumSlabs> shift_of_slab{};
  std::array<FreeBlock*, kMaxShift + 1> free_blocks{};
  std::set<void*, std::less<>, MallocAllocator<void*>> exact;
  bool is_managed = false, gives_exact = false;
};

// Never destroyed: memory is given back until the very end of the program.
State& state() {
  alignas(State) static char bytes[sizeof(State)];
  static State* const it = new (bytes) State;
  return *it;
}

thread_local int exact_depth = 0;

cudaError_t allocate_from_cuda(void** p, size_t size) {
  return state().is_managed ? cudaMallocManaged(p, size, cudaMemAttachGlobal)
                            : cudaHostAlloc(p, size, cudaHostAllocPortable | cudaHostAllocMapped);
}

void* take_exact(size_t size) {
  const int depth = exact_depth;
  exact_depth = 0;  // what the runtime allocates for itself
  void* p = nullptr;
  const bool ok = allocate_from_cuda(&p, size) == cudaSuccess;
  exact_depth = depth;
  if (!ok) throw std::bad_alloc();
  const std::lock_guard lock(state().mutex);
  state().exact.insert(p);
  return p;
}

void* take_block(size_t size, size_t alignment) {
  State& s = state();
  const int shift = std::max(kMinShift, static_cast<int>(std::bit_width(std::max(size, alignment) - 1)));
  const std::lock_guard lock(s.mutex);
  if (shift > kMaxShift) throw std::bad_alloc();
  FreeBlock*& free_block = s.free_blocks[static_cast<size_t>(shift)];
  if (free_block == nullptr) {
    const size_t bytes = size_t{1} << shift, slabs = std::max(size_t{1}, bytes / kSlabBytes);
    if (s.used_slabs + slabs > kNumSlabs) throw std::bad_alloc();
    char* const begin = s.region + s.used_slabs * kSlabBytes;
    s.shift_of_slab[s.used_slabs] = static_cast<uint8_t>(shift);
    s.used_slabs += slabs;
    for (size_t at = slabs * kSlabBytes; at >= bytes; at -= bytes) {
      free_block = new (begin + at - bytes) FreeBlock{free_block};
    }
  }
  FreeBlock* const block = free_block;
  free_block = block->next;
  return block;
}

void* allocate(size_t size, size_t alignment) {
  size = std::max(size, size_t{1});
  State& s = state();
  if (s.region != nullptr) return s.gives_exact && exact_depth > 0 ? take_exact(size) : take_block(size, alignment);
  void* const p = alignment <= 16 ? std::malloc(size)
                                  : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

void release(void* p) {
  if (p == nullptr) return;
  State& s = state();
  const auto offset = static_cast<size_t>(static_cast<char*>(p) - s.region);
  if (s.region != nullptr && p >= s.region && offset < kRegionBytes) {
    const std::lock_guard lock(s.mutex);
    // Free blocks of many slabs are given out again whole, so the first slab knows the size.
    FreeBlock*& free_block = s.free_blocks[s.shift_of_slab[offset / kSlabBytes]];
    free_block = new (p) FreeBlock{free_block};
    return;
  }
  bool is_exact = false;
  if (s.gives_exact) {
    const std::lock_guard lock(s.mutex);
    is_exact = s.exact.erase(p) > 0;
  }
  if (!is_exact) return std::free(p);
  static_cast<void>(s.is_managed ? cudaFree(p) : cudaFreeHost(p));
}

bool is_set(const char* name, const char* value) {
  const char* const text = std::getenv(name);
  return text != nullptr && std::strcmp(text, value) == 0;
}

}  // namespace

std::string start() {
  State& s = state();
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    return std::string("no CUDA device") + (error == cudaSuccess ? "" : std::string(": ") + cudaGetErrorString(error));
  }
  s.is_managed = is_set("QUIRE_TEST_MEMORY", "managed");
  s.gives_exact = is_set("QUIRE_TEST_EXACT", "1");
  size_t free_bytes = 0, total_bytes = 0;
  if (cudaMemGetInfo(&free_bytes, &total_bytes) != cudaSuccess || free_bytes < 4 * kRegionBytes) {
    return "no CUDA device with 4 GiB of free memory";
  }
  void* region = nullptr;
  const cudaError_t failure = allocate_from_cuda(&region, kRegionBytes + kSlabBytes);
  if (failure != cudaSuccess) return std::string("no memory for tests: ") + cudaGetErrorString(failure);
  const auto address = reinterpret_cast<uintptr_t>(region);
  s.region = static_cast<char*>(region) + (kSlabBytes - address % kSlabBytes) % kSlabBytes;  // blocks are aligned to it
  return "";
}

const char* kind() { return state().is_managed ? "managed" : "page-locked"; }

int run_within_reach(int (*body)()) {
  struct Run {
    int (*body)();
    int result;
  } run{body, -1};
  constexpr size_t kStackBytes = size_t{16} << 20;
  void* const stack = operator new(kStackBytes, std::align_val_t{kSlabBytes});
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, stack, kStackBytes);
  const auto start_routine = [](void* argument) -> void* {
    auto* const own = static_cast<Run*>(argument);
    own->result = own->body();
    return nullptr;
  };
  if (pthread_create(&thread, &attributes, start_routine, &run) == 0) pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
  operator delete(stack, std::align_val_t{kSlabBytes});
  return run.result;
}

Exact::Exact() { ++exact_depth; }
Exact::~Exact() { --exact_depth; }

}  // namespace quire::device_memory

void* operator new(size_t size) { return quire::device_memory::allocate(size, 16); }
void* operator new[](size_t size) { return quire::device_memory::allocate(size, 16); }
void* operator new(size_t size, std::align_val_t alignment) {
  return quire::device_memory::allocate(size, static_cast<size_t>(alignment));
}
void* operator new[](size_t size, std::align_val_t alignment) {
  return quire::device_memory::allocate(size, static_cast<size_t>(alignment));
}
void* operator new(size_t size, const std::nothrow_t&) noexcept try {
  return quire::device_memory::allocate(size, 16);
} catch (const std::bad_alloc&) {
  return nullptr;
}
void* operator new[](size_t size, const std::nothrow_t& nothrow) noexcept { return operator new(size, nothrow); }
void operator delete(void* p, const std::nothrow_t&) noexcept { quire::device_memory::release(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { quire::device_memory::release(p); }
void operator delete(void* p) noexcept { quire::device_memory::release(p); }
void operator delete[](void* p) noexcept { quire::device_memory::release(p); }
void operator delete(void* p, size_t) noexcept { quire::device_memory::release(p); }
void operator delete[](void* p, size_t) noexcept { quire::device_memory::release(p); }
void operator delete(void* p, std::align_val_t) noexcept { quire::device_memory::release(p); }
void operator delete[](void* p, std::align_val_t) noexcept { quire::device_memory::release(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { quire::device_memory::release(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { quire::device_memory::release(p); }
