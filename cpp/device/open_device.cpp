// Names of devices; see open_device.h. Knows which backends are plugins, and nothing of what they do.
#include "device/open_device.h"

#include <algorithm>
#include <exception>

#include "base/check.h"
#include "base/log.h"
#include "device/plugin.h"

namespace quire {
namespace {

struct PluginName {
  std::string backend;
  int index = 0;
};

// "cuda" is "cuda:0".
PluginName parse(const std::string& name) {
  const size_t colon = name.find(':');
  const std::string backend = name.substr(0, colon);
  const std::string number = colon == std::string::npos ? "0" : name.substr(colon + 1);
  const bool is_number = !number.empty() && number.size() <= 4 &&
                         std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; });
  if ((backend != "cuda" && backend != "simt") || !is_number) {
    throw InvalidArgument(
        str_cat("Unknown device: ", name, ". Must be \"auto\", \"cpu\", \"cuda\" or \"cuda:N\" (N from 0)"));
  }
  return {backend, std::stoi(number)};
}

// Null, and a line in the log, where the GPU cannot be used.
std::unique_ptr<Device> try_cuda() {
  try {
    const DevicePlugin& plugin = load_plugin("cuda");
    if (plugin.num_devices() == 0) {
      log_info("device=\"auto\" is the CPU: there is no GPU that could be used");
      return nullptr;
    }
    return plugin.make_device(0);
  } catch (const NotSupported& error) {
    log_info("device=\"auto\" is the CPU: ", error.what());
  } catch (const std::exception& error) {
    log_warning("device=\"auto\" is the CPU, because the GPU failed: ", error.what());
  }
  return nullptr;
}

}  // namespace

std::unique_ptr<Device> open_device(const std::string& name, const HostDeviceOptions& host_options) {
  if (name == "auto") {
    if (std::unique_ptr<Device> device = try_cuda()) return device;
  }
  if (name == "auto" || name == "cpu") return make_host_device(host_options);
  const PluginName plugin = parse(name);
  return load_plugin(plugin.backend).make_device(plugin.index);
}

}  // namespace quire
