// What is known of the plugins of devices, for bug reports and for whoever looks for their libraries. Any thread.
#include "base/check.h"
#include "device/plugin.h"
#include "quire/quire.h"

namespace quire {

void set_library_folders(std::vector<std::string> folders) { set_plugin_library_folders(std::move(folders)); }

std::string find_plugin(const std::string& backend) { return find_plugin_file(backend); }

PluginInfo describe_plugin(const std::string& backend) {
  PluginInfo info;
  try {
    const DevicePlugin& plugin = load_plugin(backend);
    info.file = plugin_path(plugin);
    info.num_devices = plugin.num_devices();
    info.libraries = plugin.describe_libraries();
  } catch (const std::exception& error) {
    info.problem = error.what();
  }
  return info;
}

}  // namespace quire
