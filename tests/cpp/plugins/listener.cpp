// A plugin without devices that says what it was told, for the tests of what libquire hands over.
#include "device/plugin.h"

#include "base/check.h"

namespace {

std::vector<std::string>& folders() {
  static std::vector<std::string> it;
  return it;
}

int num_devices() { return 0; }

std::unique_ptr<quire::Device> make_device(int index) {
  throw quire::DeviceError(quire::str_cat("the listener has no device ", index));
}

void set_library_folders(const std::vector<std::string>& told) { folders() = told; }

std::vector<std::string> describe_libraries() { return folders(); }

constexpr quire::DevicePlugin kPlugin = {.version = QUIRE_BUILD_VERSION,
                                         .num_devices = num_devices,
                                         .make_device = make_device,
                                         .set_library_folders = set_library_folders,
                                         .describe_libraries = describe_libraries};

}  // namespace

extern "C" __attribute__((visibility("default"))) const quire::DevicePlugin* quire_device_plugin(
    const quire::PluginHost*) {
  return &kPlugin;
}
