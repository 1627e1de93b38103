// Devices by name, and what crosses the border to a plugin: errors by type, log lines, work. The plugin is the emulated
// one, loaded as libquire loads it; this program links none of its code.
#include "device/plugin.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "base/check.h"
#include "device/open_device.h"

namespace quire {
namespace {

std::unique_ptr<Device> open(const std::string& name) { return open_device(name, {.num_threads = 1}); }

template <typename Error>
std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error of that type";
  return "";
}

void expect_parts(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) EXPECT_NE(text.find(part), std::string::npos) << part << " is not in: " << text;
}

class Plugins : public testing::Test {
 protected:
  void SetUp() override { setenv("QUIRE_PLUGIN_PATH", QUIRE_TESTING_DIR, 1); }
  void TearDown() override {
    unsetenv("QUIRE_PLUGIN_PATH");
    set_log_sink({});
  }
};

TEST_F(Plugins, NamesThatAreNoneAreRefused) {
  for (const char* name :
       {"", "tpu", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:1 ", "cuda:12345", "simt:+1"}) {
    expect_parts(message_of<InvalidArgument>([&] { open(name); }),
                 {std::string("Unknown device: ") + name + ". ", "\"auto\", \"cpu\", \"cuda\" or \"cuda:N\""});
  }
  EXPECT_EQ(open("cpu")->name(), "cpu");
}

TEST_F(Plugins, AutoIsNeverAnError) {
  const std::string name = open("auto")->name();
  EXPECT_TRUE(name == "cpu" || name == "cuda") << name;
}

TEST_F(Plugins, ThatAreNotThereSayWhereTheyWereLookedFor) {
  const std::string own = std::filesystem::canonical("/proc/self/exe").parent_path();
  expect_parts(message_of<NotSupported>([] { load_plugin("absent"); }),
               {"libquire_absent.so", QUIRE_TESTING_DIR "/libquire_absent.so", own + "/libquire_absent.so",
                "pip install quire[absent]", "QUIRE_CUDA=ON", "device=\"cpu\""});
}

TEST_F(Plugins, ThatAreNoneAreToldApart) {
  const std::string folder = testing::TempDir() + "quire_plugins";
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/libquire_broken.so") << "not a library";
  setenv("QUIRE_PLUGIN_PATH", folder.c_str(), 1);
  expect_parts(message_of<DeviceError>([] { load_plugin("broken"); }), {"cannot be loaded", "libquire_broken.so"});
  std::filesystem::remove_all(folder);
  setenv("QUIRE_PLUGIN_PATH", QUIRE_TESTING_DIR, 1);
  expect_parts(message_of<DeviceError>([] { load_plugin("stranger"); }),
               {"libquire_stranger.so is no plugin of quire", kPluginEntry});
  expect_parts(message_of<DeviceError>([] { load_plugin("older"); }),
               {"libquire_older.so is of another build", "found ABI " + std::to_string(kPluginAbi - 1),
                "needed ABI " + std::to_string(kPluginAbi), QUIRE_BUILD_VERSION});
}

TEST_F(Plugins, AreToldWhereLibrariesAre) {
  EXPECT_EQ(find_plugin_file("listener"), QUIRE_TESTING_DIR "/libquire_listener.so");
  EXPECT_EQ(find_plugin_file("absent"), "");
  set_plugin_library_folders({"/first", "/second"});
  const DevicePlugin& listener = load_plugin("listener");
  set_plugin_library_folders({});
  EXPECT_EQ(listener.describe_libraries(), (std::vector<std::string>{"/first", "/second"}));
  EXPECT_EQ(plugin_path(listener), QUIRE_TESTING_DIR "/libquire_listener.so");
  EXPECT_EQ(load_plugin("simt").describe_libraries(),
            (std::vector<std::string>{"no cuBLASLt: the kernels are emulated, there is no GPU",
                                      "no NCCL: the kernels are emulated, there is no GPU"}));
}

TEST_F(Plugins, DoTheWorkOfADevice) {
  const auto device = open("simt:0");
  EXPECT_EQ(device->name(), "simt");
  const auto memory = device->allocate(RegionTag::workspace, 256);
  const std::vector<float> x(64, -3.0f);
  device->copy_to_device(memory->data(), x.data(), 256);
  float* const values = reinterpret_cast<float*>(memory->data());
  device->kernels().norm({.x = values, .x_stride = 64, .rows = 1, .dim = 64, .out = values, .out_stride = 64},
                         device->stream());
  std::vector<float> y(64);
  device->copy_to_host(y.data(), memory->data(), 256);
  for (const float value : y) ASSERT_NEAR(value, -1.0f, 1e-6f);
}

// Thrown by code of the plugin, caught here by type.
TEST_F(Plugins, ThrowErrorsThatAreCaughtByType) {
  const auto device = open("simt");
  expect_parts(message_of<OutOfMemory>([&] { device->allocate(RegionTag::kv_cache, size_t{1} << 40); }), {"kv_cache"});
  expect_parts(message_of<DeviceError>([] { open("simt:7"); }), {"\"simt:7\" does not exist"});
  std::vector<char> pageable(8);
  EXPECT_THROW(device->copy_async(pageable.data(), pageable.data(), 8, device->stream()), DeviceError);
  EXPECT_THROW(device->kernels().norm({.dim = -1}, device->stream()), InternalError);
  EXPECT_THROW(device->allocate(RegionTag::kv_cache, size_t{1} << 40), std::runtime_error);
  try {
    device->copy_async(pageable.data(), pageable.data(), 8, device->stream());
  } catch (const OutOfMemory&) {
    FAIL() << "no lack of memory";
  } catch (const DeviceError&) {
  }
}

TEST_F(Plugins, LogToTheSinkOfTheApplication) {
  std::vector<std::string> lines;
  set_log_sink([&](LogLevel level, const std::string& line) {
    if (level == LogLevel::info) lines.push_back(line);
  });
  open("simt");
  ASSERT_FALSE(lines.empty());
  expect_parts(lines.back(), {"simt:0 is emulated GPU", "4.00 GiB"});
}

}  // namespace
}  // namespace quire
