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
#include <vector>

#include "base/log.h"
#include "device/device.h"

namespace quire {

constexpr int32_t kPluginAbi = 9;  // raise it when Device, Region, Span, a Params struct or what follows changes

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
  // Folders with libraries that the plugin may open at run time; told once, before any device is made.
  void (*set_library_folders)(const std::vector<std::string>& folders) = nullptr;
  // One line for users a library: which one it is, or what was tried. Looks for them.
  std::vector<std::string> (*describe_libraries)() = nullptr;
};

constexpr const char* kPluginEntry = "quire_device_plugin";
using PluginEntry = const DevicePlugin* (*)(const PluginHost* host);

// The plugin of "cuda" or "simt". Throws NotSupported where there is none, with where it was looked for and how to get
// it, and DeviceError where it cannot be loaded or is of another build.
const DevicePlugin& load_plugin(const std::string& backend);

// The name of its file: "libquire_cuda.so".
std::string plugin_file(const std::string& backend);

// Where a loaded plugin lies.
std::string plugin_path(const DevicePlugin& plugin);

// Where load_plugin will find the plugin: in QUIRE_PLUGIN_PATH or beside libquire. Empty: not there; the loader's own
// path is not looked at. Loads nothing.
std::string find_plugin_file(const std::string& backend);

// What plugins are told when they are loaded; nothing changes for those that are.
void set_plugin_library_folders(std::vector<std::string> folders);

}  // namespace quire
