// The nvcc side of simt.h: launch, shared memory and the few wrappers of inline assembly. Included by simt.h alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "base/check.h"
#include "cuda/simt/kernel_name.h"
#include "params/stream.h"

namespace quire::simt {

inline constexpr const char* kBackendName = "cuda";
inline constexpr bool kIsEmulated = false;

struct LaunchConfig {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  Stream stream = {};
  bool pdl = false;  // may start when the previous kernel of the stream calls grid_dependency_launch
};

inline void check_cuda(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  throw DeviceError(str_cat(call, ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")"));
}

inline int current_device() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

// Of the current device; asked of the runtime once a device, because every launch wants to know.
template <cudaDeviceAttr kAttribute>
int device_attribute() {
  static std::atomic<int> known[64];
  const int device = current_device();
  std::atomic<int>& attribute = known[device & 63];
  if (attribute.load() == 0) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, kAttribute, device), "cudaDeviceGetAttribute");
    attribute.store(value);
  }
  return attribute.load();
}

// How many blocks that fill a multiprocessor run at once.
inline int num_multiprocessors() { return device_attribute<cudaDevAttrMultiProcessorCount>(); }
// The most dynamic shared memory that a block may have on the current device.
inline size_t max_shared_bytes() {
  return static_cast<size_t>(device_attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>());
}

// Whether launches wait for their kernel, so that an error is told by the launch that made it.
inline bool launches_block() {
  static const bool blocks = [] {
    const auto is_set = [](const char* name) {
      const char* const value = std::getenv(name);
      return value != nullptr && *value != '\0' && std::strcmp(value, "0") != 0;
    };
    return is_set("QUIRE_LAUNCH_BLOCKING") || is_set("CUDA_LAUNCH_BLOCKING");
  }();
  return blocks;
}

// `launcher` is what the compiler calls the launch.
inline void check_launch(cudaError_t error, const char* launcher) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  const bool may_be_older = !launches_block() && error >= cudaErrorIllegalAddress && error <= cudaErrorLaunchFailure &&
                            error != cudaErrorLaunchOutOfResources;
  throw DeviceError(str_cat("launch of ", kernel_name(launcher), ": ", cudaGetErrorString(error), " (",
                            cudaGetErrorName(error), ")",
                            may_be_older ? ". A kernel before it may have failed: QUIRE_LAUNCH_BLOCKING=1 waits for "
                                           "each and names it"
                                         : ""));
}

inline void wait_for_kernel(cudaStream_t stream, const char* launcher) {
  cudaStreamCaptureStatus capture{};
  check_launch(cudaStreamIsCapturing(stream, &capture), launcher);
  if (capture == cudaStreamCaptureStatusNone) check_launch(cudaStreamSynchronize(stream), launcher);
}

template <auto Kernel, typename Args>
void launch(const LaunchConfig& config, const Args& args) {
  if (config.shared_bytes > 48 << 10) {  // more must be asked for, once a kernel and device
    static std::atomic<uint64_t> raised{0};
    const uint64_t bit = uint64_t{1} << (current_device() & 63);
    if (!(raised.load() & bit)) {
      const auto limit = static_cast<int>(max_shared_bytes());
      check_cuda(cudaFuncSetAttribute(Kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit),
                 "cudaFuncSetAttribute");
      raised.fetch_or(bit);
    }
  }
  const bool has_pdl = device_attribute<cudaDevAttrComputeCapabilityMajor>() >= 9;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t launch_config{};
  launch_config.gridDim = config.grid;
  launch_config.blockDim = config.block;
  launch_config.dynamicSmemBytes = config.shared_bytes;
  launch_config.stream = static_cast<cudaStream_t>(config.stream.handle);
  launch_config.attrs = &attribute;
  launch_config.numAttrs = config.pdl && has_pdl ? 1 : 0;
  check_launch(cudaLaunchKernelEx(&launch_config, Kernel, args), __PRETTY_FUNCTION__);
  if (launches_block()) [[unlikely]]
    wait_for_kernel(launch_config.stream, __PRETTY_FUNCTION__);
}

// The dynamic shared memory of the block, as one struct. Not initialised.
template <typename T>
__device__ __forceinline__ T& block_shared() {
  extern __shared__ __align__(1024) unsigned char quire_dynamic_shared[];
  return *reinterpret_cast<T*>(quire_dynamic_shared);
}

// Barrier `id` (1 to 15) among `threads` threads, a multiple of 32.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Before the first read of what the previous kernel of the stream wrote.
__device__ __forceinline__ void grid_dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel of the stream may start; it still waits for this one's end before it reads what was written.
__device__ __forceinline__ void grid_dependency_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// 2^x to about 2 units in the last place; exactly 1 for 0, 0 for -infinity.
__device__ __forceinline__ float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// 16 bytes that are read once: not kept in L1, first to leave L2.
__device__ __forceinline__ uint4 load_streaming(const uint4* address) {
  uint64_t policy;
  uint4 value;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address), "l"(policy));
  return value;
}

}  // namespace quire::simt
