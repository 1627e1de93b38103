// Memory of the emulated device: address ranges, physical memory mapped into them, page-locked host memory.
//
// Device memory is the host's, mapped copy-on-write from one file of 0xFF bytes, so that fresh memory reads as NaN and
// costs nothing until it is written. Each range has an unmapped page on both sides. The contents of physical memory do
// not outlive its mapping, unlike a GPU's.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "cuda/simt/cudart_emu/state.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace quire::cudart_emu {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kFillBytes = size_t{16} << 20;

size_t page_end(size_t num_bytes) { return (num_bytes + kPage - 1) / kPage * kPage; }
void* pointer_of(uintptr_t address) { return reinterpret_cast<void*>(address); }

int fill_file() {
  static const int file = [] {
    const int fd = ::memfd_create("quire_cudart_emu", MFD_CLOEXEC);
    const std::vector<unsigned char> bytes(kFillBytes, 0xFF);
    if (fd < 0 || ::pwrite(fd, bytes.data(), kFillBytes, 0) != static_cast<ssize_t>(kFillBytes)) return -1;
    return fd;
  }();
  return file;
}

// The pages hold 0xFF from now on.
bool map_filled(uintptr_t address, size_t num_bytes, int protection) {
  for (size_t at = 0; at < num_bytes; at += kFillBytes) {
    const size_t bytes = std::min(kFillBytes, num_bytes - at);
    if (::mmap(pointer_of(address + at), bytes, protection, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fill_file(), 0) ==
        MAP_FAILED) {
      return false;
    }
  }
  return true;
}

// Addresses without memory and a page on both sides that never gets some; 0 when there are none.
uintptr_t reserve(size_t num_bytes) {
  void* const mapping =
      ::mmap(nullptr, num_bytes + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return mapping == MAP_FAILED ? 0 : reinterpret_cast<uintptr_t>(mapping) + kPage;
}
void give_back(uintptr_t address, size_t num_bytes) { ::munmap(pointer_of(address - kPage), num_bytes + 2 * kPage); }

// Tells AddressSanitizer that the last `bad_bytes` of the `num_bytes` at `address` must not be touched.
void poison_end([[maybe_unused]] uintptr_t address, [[maybe_unused]] size_t num_bytes,
                [[maybe_unused]] size_t bad_bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(pointer_of(address), num_bytes);
  __asan_poison_memory_region(pointer_of(address + num_bytes - bad_bytes), bad_bytes);
#endif
}

void protect(uintptr_t address, const Block& block, bool may_touch) {
  ::mprotect(pointer_of(address), block.num_bytes, may_touch ? PROT_READ | PROT_WRITE : PROT_NONE);
}

void protect_device_memory(bool may_touch) {
  for (const auto& [address, block] : state().blocks) {
    if (!block.is_host) protect(address, block, may_touch || state().machine.host_may_touch);
  }
}

// Frees physical memory that nobody can reach any more.
void settle(CUmemGenericAllocationHandle handle) {
  State& s = state();
  const auto it = s.handles.find(handle);
  if (it == s.handles.end() || !it->second.is_released || it->second.mappings > 0) return;
  s.device_bytes -= it->second.num_bytes;
  s.handles.erase(it);
}

CUresult outcome(CUresult result) { return state().sticky == cudaSuccess ? result : CUDA_ERROR_LAUNCH_FAILED; }

const std::pair<const char*, void*> kDriverFunctions[] = {
    {"cuGetErrorName", reinterpret_cast<void*>(&cuGetErrorName)},
    {"cuGetErrorString", reinterpret_cast<void*>(&cuGetErrorString)},
    {"cuMemGetAllocationGranularity", reinterpret_cast<void*>(&cuMemGetAllocationGranularity)},
    {"cuMemAddressReserve", reinterpret_cast<void*>(&cuMemAddressReserve)},
    {"cuMemAddressFree", reinterpret_cast<void*>(&cuMemAddressFree)},
    {"cuMemCreate", reinterpret_cast<void*>(&cuMemCreate)},
    {"cuMemRelease", reinterpret_cast<void*>(&cuMemRelease)},
    {"cuMemMap", reinterpret_cast<void*>(&cuMemMap)},
    {"cuMemUnmap", reinterpret_cast<void*>(&cuMemUnmap)},
    {"cuMemSetAccess", reinterpret_cast<void*>(&cuMemSetAccess)},
};

}  // namespace

std::string out_of_reach(const void* address, size_t num_bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  const std::map<uintptr_t, Block>& blocks = state().blocks;
  auto it = blocks.upper_bound(begin);
  if (it != blocks.begin()) {
    --it;
    const size_t offset = begin - it->first;
    if (offset <= it->second.used_bytes && num_bytes <= it->second.used_bytes - offset) return "";
    if (offset < it->second.num_bytes) {
      return str_cat(num_bytes, " bytes at ", offset, " of ", it->second.used_bytes, " run past the end of ",
                     it->second.is_host ? "page-locked" : "device", " memory");
    }
  }
  return str_cat(num_bytes, " bytes at ", address, " are neither device memory nor page-locked");
}

Unlocked::Unlocked() {
  if (state().unlocked++ == 0) protect_device_memory(true);
}
Unlocked::~Unlocked() {
  if (--state().unlocked == 0) protect_device_memory(false);
}

void set_used_bytes(const void* mapping, size_t num_bytes) {
  const std::lock_guard lock(state().mutex);
  const auto it = state().blocks.find(reinterpret_cast<uintptr_t>(mapping));
  QUIRE_CHECK(it != state().blocks.end() && num_bytes <= it->second.num_bytes, "no mapping of ", num_bytes, " bytes");
  it->second.used_bytes = num_bytes;
  poison_end(it->first, it->second.num_bytes, it->second.num_bytes - num_bytes);
}

}  // namespace quire::cudart_emu

using namespace quire::cudart_emu;

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  *function = nullptr;
  for (const auto& [name, address] : kDriverFunctions) {
    if (!std::strcmp(name, symbol)) *function = address;
  }
  if (found) *found = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const std::lock_guard lock(state().mutex);
  *total_bytes = state().machine.memory_bytes;
  *free_bytes = *total_bytes - std::min(*total_bytes, state().device_bytes);
  return set_error(state().sticky);
}

cudaError_t cudaHostAlloc(void** pointer, size_t num_bytes, unsigned) {
  const std::lock_guard lock(state().mutex);
  State& s = state();
  *pointer = nullptr;
  if (s.sticky != cudaSuccess) return set_error(s.sticky);
  if (capture_forbids()) return set_error(cudaErrorStreamCaptureUnsupported);
  if (allocation_fails()) return set_error(cudaErrorMemoryAllocation);
  if (num_bytes == 0) return cudaSuccess;
  const size_t bytes = page_end(num_bytes);
  const uintptr_t address = reserve(bytes);
  if (address == 0 || !map_filled(address, bytes, PROT_READ | PROT_WRITE)) return set_error(cudaErrorMemoryAllocation);
  s.blocks[address] = {.num_bytes = bytes, .used_bytes = num_bytes, .is_host = true};
  poison_end(address, bytes, bytes - num_bytes);
  *pointer = pointer_of(address);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* pointer) {
  const std::lock_guard lock(state().mutex);
  State& s = state();
  if (pointer == nullptr) return set_error(s.sticky);
  const auto it = s.blocks.find(reinterpret_cast<uintptr_t>(pointer));
  if (it == s.blocks.end() || !it->second.is_host) return set_error(cudaErrorInvalidValue);
  poison_end(it->first, it->second.num_bytes, 0);
  give_back(it->first, it->second.num_bytes);
  s.blocks.erase(it);
  return set_error(s.sticky);
}

CUresult cuGetErrorName(CUresult error, const char** name) {
  *name = error == CUDA_SUCCESS               ? "CUDA_SUCCESS"
          : error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
          : error == CUDA_ERROR_LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED"
                                              : "CUDA_ERROR_INVALID_VALUE";
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = error == CUDA_SUCCESS               ? "no error"
          : error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory"
          : error == CUDA_ERROR_LAUNCH_FAILED ? cudaGetErrorString(state().sticky)
                                              : "invalid argument";
  return CUDA_SUCCESS;
}

CUresult cuMemGetAllocationGranularity(size_t* granularity, const CUmemAllocationProp*,
                                       CUmemAllocationGranularity_flags) {
  *granularity = kPage;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr* pointer, size_t num_bytes, size_t, CUdeviceptr, unsigned long long) {
  const std::lock_guard lock(state().mutex);
  if (outcome(CUDA_SUCCESS) != CUDA_SUCCESS) return CUDA_ERROR_LAUNCH_FAILED;
  if (num_bytes == 0 || num_bytes % kPage != 0) return CUDA_ERROR_INVALID_VALUE;
  if (allocation_fails()) return CUDA_ERROR_OUT_OF_MEMORY;
  const uintptr_t address = reserve(num_bytes);
  if (address == 0) return CUDA_ERROR_OUT_OF_MEMORY;
  state().reservations[address] = {num_bytes};
  *pointer = address;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr pointer, size_t num_bytes) {
  const std::lock_guard lock(state().mutex);
  State& s = state();
  const auto it = s.reservations.find(pointer);
  if (it == s.reservations.end() || it->second.num_bytes != num_bytes) return CUDA_ERROR_INVALID_VALUE;
  const auto mapping = s.mappings.lower_bound(pointer);
  if (mapping != s.mappings.end() && mapping->first < pointer + num_bytes) return CUDA_ERROR_INVALID_VALUE;
  give_back(pointer, num_bytes);
  s.reservations.erase(it);
  return outcome(CUDA_SUCCESS);
}

CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t num_bytes, const CUmemAllocationProp* properties,
                     unsigned long long) {
  const std::lock_guard lock(state().mutex);
  State& s = state();
  if (outcome(CUDA_SUCCESS) != CUDA_SUCCESS) return CUDA_ERROR_LAUNCH_FAILED;
  if (num_bytes == 0 || num_bytes % kPage != 0 || properties->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
      properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE || properties->location.id < 0 ||
      properties->location.id >= s.machine.num_devices) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (allocation_fails() || num_bytes > s.machine.memory_bytes - std::min(s.machine.memory_bytes, s.device_bytes)) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  *handle = s.next_handle++;
  s.handles[*handle] = {.num_bytes = num_bytes};
  s.device_bytes += num_bytes;
  return CUDA_SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  const std::lock_guard lock(state().mutex);
  const auto it = state().handles.find(handle);
  if (it == state().handles.end() || it->second.is_released) return CUDA_ERROR_INVALID_VALUE;
  it->second.is_released = true;
  settle(handle);
  return outcome(CUDA_SUCCESS);
}

CUresult cuMemMap(CUdeviceptr pointer, size_t num_bytes, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long) {
  const std::lock_guard lock(state().mutex);
  State& s = state();
  if (outcome(CUDA_SUCCESS) != CUDA_SUCCESS) return CUDA_ERROR_LAUNCH_FAILED;
  auto range = s.reservations.upper_bound(pointer);
  const auto physical = s.handles.find(handle);
  if (range == s.reservations.begin() || physical == s.handles.end() || physical->second.is_released || offset != 0 ||
      num_bytes != physical->second.num_bytes) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  --range;
  const auto next = s.mappings.lower_bound(pointer);
  const bool overlaps =
      (next != s.mappings.end() && next->first < pointer + num_bytes) ||
      (next != s.mappings.begin() && std::prev(next)->first + std::prev(next)->second.num_bytes > pointer);
  if (overlaps || pointer + num_bytes > range->first + range->second.num_bytes) return CUDA_ERROR_INVALID_VALUE;
  if (allocation_fails()) return CUDA_ERROR_OUT_OF_MEMORY;
  s.mappings[pointer] = {num_bytes, handle};
  ++physical->second.mappings;
  return CUDA_SUCCESS;
}

CUresult cuMemSetAccess(CUdeviceptr pointer, size_t num_bytes, const CUmemAccessDesc* access, size_t count) {
  const std::lock_guard lock(state().mutex);
  State& s = state();
  if (outcome(CUDA_SUCCESS) != CUDA_SUCCESS) return CUDA_ERROR_LAUNCH_FAILED;
  const auto it = s.mappings.find(pointer);
  const auto is_right = [&](const CUmemAccessDesc& desc) {
    return desc.flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE && desc.location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
           desc.location.id < s.machine.num_devices;
  };
  if (it == s.mappings.end() || it->second.num_bytes != num_bytes || count < 1 ||
      !std::all_of(access, access + count, is_right)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const bool may_touch = s.unlocked > 0 || s.machine.host_may_touch;
  if (allocation_fails() || !map_filled(pointer, num_bytes, may_touch ? PROT_READ | PROT_WRITE : PROT_NONE)) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  s.blocks[pointer] = {.num_bytes = num_bytes, .used_bytes = num_bytes};
  return CUDA_SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr pointer, size_t num_bytes) {
  const std::lock_guard lock(state().mutex);
  State& s = state();
  const auto it = s.mappings.find(pointer);
  if (it == s.mappings.end() || it->second.num_bytes != num_bytes) return CUDA_ERROR_INVALID_VALUE;
  const auto block = s.blocks.find(pointer);
  if (block != s.blocks.end()) {
    poison_end(pointer, num_bytes, 0);
    ::mmap(pointer_of(pointer), num_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    s.blocks.erase(block);
  }
  const CUmemGenericAllocationHandle handle = it->second.handle;
  s.mappings.erase(it);
  --s.handles[handle].mappings;
  settle(handle);
  return outcome(CUDA_SUCCESS);
}
