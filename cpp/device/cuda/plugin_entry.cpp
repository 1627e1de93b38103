// What a plugin exports; see device/plugin.h. The one file of this folder that is in plugins alone.
#include <cuda_runtime_api.h>

#include "base/log.h"
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

constexpr DevicePlugin kPlugin = {
    .version = QUIRE_BUILD_VERSION, .num_devices = num_devices, .make_device = make_cuda_device};

}  // namespace
}  // namespace quire

extern "C" __attribute__((visibility("default"))) const quire::DevicePlugin* quire_device_plugin(
    const quire::PluginHost* host) {
  quire::set_log_sink(host->log);
  return &quire::kPlugin;
}
