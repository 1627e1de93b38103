// The checks before a GPU is used; see machine.h.
//
// Each says what was found, what is needed and what to do. Knows which compute capabilities have kernels, and nothing
// else of them.
#include "device/cuda/machine.h"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

#include "base/check.h"
#include "base/log.h"
#include "cuda/cuda_kernels.h"

namespace quire {
namespace {

std::string version_text(int version) { return str_cat("CUDA ", version / 1000, ".", version % 1000 / 10); }

// What hides devices, where it is set.
std::string visible_devices() {
  const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES");
  return visible == nullptr ? "" : str_cat(" with CUDA_VISIBLE_DEVICES=\"", visible, "\"");
}

std::string not_usable() { return str_cat("device=\"", cuda::kernels().name, "\" cannot be used: "); }

int count_devices() {
  int driver = 0, runtime = 0, count = 0;
  static_cast<void>(cudaDriverGetVersion(&driver));
  static_cast<void>(cudaRuntimeGetVersion(&runtime));
  const cudaError_t error = cudaGetDeviceCount(&count);
  static_cast<void>(cudaGetLastError());
  const std::string needed = str_cat("an NVIDIA driver for ", version_text(runtime), " or later");
  if (error != cudaSuccess && driver == 0) {
    throw DeviceError(str_cat(not_usable(), "found no NVIDIA driver (libcuda.so.1), needed is ", needed,
                              "; install one (nvidia-smi shows it), or use device=\"cpu\""));
  }
  if (error == cudaErrorInsufficientDriver) {
    throw DeviceError(str_cat(not_usable(), "the installed driver is for ", version_text(driver), ", needed is ",
                              needed, "; update the driver, or use device=\"cpu\""));
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    throw DeviceError(str_cat(not_usable(), "the driver (for ", version_text(driver), ") shows no GPU",
                              visible_devices(), "; see what `nvidia-smi -L` lists, or use device=\"cpu\""));
  }
  if (error != cudaSuccess) {
    throw DeviceError(str_cat(not_usable(), "cudaGetDeviceCount failed: ", cudaGetErrorString(error), " (",
                              cudaGetErrorName(error), ") with a driver for ", version_text(driver),
                              "; see whether nvidia-smi works, or use device=\"cpu\""));
  }
  return count;
}

// The architectures of cmake/cuda.cmake: sm_80 runs on all of 8.x, sm_90a on 9.0 alone.
bool has_kernels_for(int major, int minor) { return major == 8 || (major == 9 && minor == 0); }

}  // namespace

std::string gib_text(size_t num_bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f GiB", static_cast<double>(num_bytes) / (size_t{1} << 30));
  return text;
}

void check_cuda_machine(int index) {
  const int count = count_devices();
  const char* const backend = cuda::kernels().name;
  if (index < 0 || index >= count) {
    const std::string last = count == 1 ? "" : str_cat(" to \"", backend, ":", count - 1, "\"");
    throw DeviceError(str_cat("device=\"", backend, ":", index, "\" does not exist: there ",
                              count == 1 ? "is " : "are ", count, count == 1 ? " device" : " devices",
                              visible_devices(), "; use \"", backend, ":0\"", last));
  }
  cudaDeviceProp properties{};
  const cudaError_t error = cudaGetDeviceProperties(&properties, index);
  if (error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    throw DeviceError(str_cat(not_usable(), "cudaGetDeviceProperties failed: ", cudaGetErrorString(error), " (",
                              cudaGetErrorName(error), ")"));
  }
  const std::string capability = str_cat(properties.major, ".", properties.minor);
  if (!has_kernels_for(properties.major, properties.minor)) {
    throw NotSupported(str_cat(not_usable(), properties.name, " (", backend, ":", index, ") has compute capability ",
                               capability, ", this build of quire has kernels for 8.0 to 8.9 and 9.0",
                               "; use another GPU or device=\"cpu\""));
  }
  log_info(backend, ":", index, " is ", properties.name, ", compute capability ", capability, ", ",
           gib_text(properties.totalGlobalMem));
}

}  // namespace quire
