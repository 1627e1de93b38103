// The border between libquire and the plugin of a device: libquire_cuda.so, libquire_simt.so.
//
// Decides: what a plugin exports (one function of C, named below), what each side tells the other, where plugins are
// looked for. A plugin is part of one build: version and layout must be libquire's own, which is checked before
// anything else is touched. Errors cross the border as the classes of base/check.h: both sides hide their symbols, and
// the C++ runtime (libstdc++) finds equal types by their names. A plugin stays loaded until the process ends.
// Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/log.h"
#include "device/device.h"

namespace quire {

constexpr int32_t kPluginAbi = 2;  // raise it when Device, Region, a Params struct or what follows changes

struct PluginHost {
  void (*log)(LogLevel level, const std::string& message) = nullptr;  // the application's sink
};

struct DevicePlugin {
  // In this order in every version, so that a stranger can be told.
  int32_t abi = kPluginAbi;
  uint32_t kernel_table_bytes = sizeof(KernelTable);
  const char* version = "";  // of quire

  int (*num_devices)() = nullptr;  // that could be used; 0 without a driver
  std::unique_ptr<Device> (*make_device)(int index) = nullptr;
};

constexpr const char* kPluginEntry = "quire_device_plugin";
using PluginEntry = const DevicePlugin* (*)(const PluginHost* host);

// The plugin of "cuda" or "simt". Throws NotSupported where there is none, with where it was looked for and how to get
// it, and DeviceError where it cannot be loaded or is of another build.
const DevicePlugin& load_plugin(const std::string& backend);

// The name of its file: "libquire_cuda.so".
std::string plugin_file(const std::string& backend);

}  // namespace quire
