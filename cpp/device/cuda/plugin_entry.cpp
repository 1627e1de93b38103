// What a plugin exports; see device/plugin.h. The one file of this folder that is in plugins alone.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <filesystem>

#include "base/log.h"
#include "cuda/comm/nccl.h"
#include "cuda/gemm/cublaslt.h"
#include "cuda/library_finder.h"
#include "device/cuda/cuda_device.h"
#include "device/plugin.h"

namespace quire {
namespace {

int num_devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  static_cast<void>(cudaGetLastError());
  return error == cudaSuccess ? count : 0;
}

// NVIDIA's wheels may lie where quire's own does: this file is <site-packages>/quire/lib/libquire_cuda.so.
std::vector<std::string> site_packages() {
  Dl_info self{};
  if (dladdr(reinterpret_cast<const void*>(&num_devices), &self) == 0 || self.dli_fname == nullptr) return {};
  const std::filesystem::path package = std::filesystem::absolute(self.dli_fname).parent_path().parent_path();
  return {package.parent_path().string()};
}

void set_folders(const std::vector<std::string>& folders) {
  cuda::set_library_folders({.libraries = folders, .wheels = site_packages()});
}

std::vector<std::string> describe_libraries() { return {cuda::cublaslt_status(), cuda::nccl_status()}; }

constexpr DevicePlugin kPlugin = {.version = QUIRE_BUILD_VERSION,
                                  .num_devices = num_devices,
                                  .make_device = make_cuda_device,
                                  .set_library_folders = set_folders,
                                  .describe_libraries = describe_libraries};

}  // namespace
}  // namespace quire

extern "C" __attribute__((visibility("default"))) const quire::DevicePlugin* quire_device_plugin(
    const quire::PluginHost* host) {
  quire::set_log_sink(host->log);
  return &quire::kPlugin;
}
