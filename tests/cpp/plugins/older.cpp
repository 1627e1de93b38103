// A plugin of another build, for the loader to refuse.
#include "device/plugin.h"

namespace {
constexpr quire::DevicePlugin kPlugin = {.abi = quire::kPluginAbi - 1, .kernel_table_bytes = 8};
}  // namespace

extern "C" __attribute__((visibility("default"))) const quire::DevicePlugin* quire_device_plugin(
    const quire::PluginHost*) {
  return &kPlugin;
}
