// Names of devices; see open_device.h. Knows which backends are plugins, and nothing of what they do.
#include "device/open_device.h"

#include <algorithm>
#include <exception>

#include "base/check.h"
#include "base/log.h"
#include "base/threads.h"
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

// "auto" is decided by the first rank's device; the others follow.
std::vector<std::string> names_of_ranks(std::string name, int count) {
  if (name == "auto") name = try_cuda() != nullptr ? "cuda" : "cpu";
  std::vector<std::string> names;
  if (name == "cpu") return std::vector<std::string>(static_cast<size_t>(count), name);
  const size_t colon = name.find(':');
  const std::string backend = name.substr(0, colon);
  if (name.find(',') == std::string::npos) {
    const int first = parse(name).index;
    for (int rank = 0; rank < count; ++rank) names.push_back(str_cat(backend, ":", first + rank));
    return names;
  }
  for (size_t begin = colon + 1; begin <= name.size();) {
    const size_t end = std::min(name.find(',', begin), name.size());
    names.push_back(backend + ":" + name.substr(begin, end - begin));
    begin = end + 1;
  }
  require(std::ssize(names) == count,
          str_cat("device=\"", name, "\" lists ", names.size(), " devices for tensor_parallel_size=", count));
  return names;
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

std::vector<std::unique_ptr<Device>> open_devices(const std::string& name, int count,
                                                  const HostDeviceOptions& host_options) {
  std::vector<std::unique_ptr<Device>> devices;
  if (count == 1) {
    devices.push_back(open_device(name, host_options));
    return devices;
  }
  HostDeviceOptions share = host_options;
  const int num_threads = host_options.num_threads > 0 ? host_options.num_threads : default_num_threads();
  const std::vector<std::string> names = names_of_ranks(name, count);
  for (int rank = 0; rank < count; ++rank) {
    share.num_threads = std::max(1, num_threads / count + (rank < num_threads % count ? 1 : 0));
    devices.push_back(open_device(names[static_cast<size_t>(rank)], share));
  }
  return devices;
}

int num_ranks_of_a_device(const std::string& name, int count) {
  const std::vector<std::string> names = names_of_ranks(name, count);
  ptrdiff_t most = 1;
  for (const std::string& one : names) most = std::max(most, std::ranges::count(names, one));
  return static_cast<int>(most);
}

}  // namespace quire
