#include "kernels_cuda/device_queue.h"

#include <cuda_runtime_api.h>

#include "base/check.h"

namespace quire::device_queue {
namespace {

int num_deferred = 0;
Launches counted;

std::string& failure_text() {
  static std::string text;
  return text;
}

void note(cudaError_t error) {
  if (error == cudaSuccess || !failure_text().empty()) return;
  if (cudaGetLastError() == cudaSuccess || cudaDeviceSynchronize() == cudaSuccess) return;  // gone with the launch
  failure_text() = std::string(cudaGetErrorName(error)) + " (" + cudaGetErrorString(error) + ")";
}

}  // namespace

Deferred::Deferred() { ++num_deferred; }
Deferred::~Deferred() { --num_deferred; }

void finish() {
  const cudaError_t error = cudaDeviceSynchronize();
  if (error == cudaSuccess) return;
  note(error);
  throw DeviceError(str_cat("a kernel failed: ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")"));
}

const std::string& failure() { return failure_text(); }

Launches launches() { return counted; }

}  // namespace quire::device_queue

// The linker puts __wrap_x where x is called (--wrap).
extern "C" cudaError_t __real_cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** args);
extern "C" cudaError_t __wrap_cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** args) {
  using namespace quire::device_queue;
  const auto volume = [](const auto& d) { return uint64_t{d.x} * d.y * d.z; };
  counted.launches += 1;
  counted.threads += volume(config->gridDim) * volume(config->blockDim);
  cudaError_t error = __real_cudaLaunchKernelExC(config, kernel, args);
  if (error == cudaSuccess && num_deferred == 0) error = cudaStreamSynchronize(config->stream);
  note(error);
  return error;
}
