// What the CUDA device says and leaves behind when the runtime refuses, fails or is not there; on the emulated runtime.
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "base/recorder.h"
#include "cuda/simt/simt.h"
#include "cudart_emu/machine.h"
#include "device/cuda/cuda_device.h"

namespace quire {
namespace {

struct NoArgs {};
__global__ void lost_kernel(const NoArgs) { simt::fail("this kernel is lost", simt::Loc::current()); }

void launch_lost(const Device& device) {
  simt::launch<lost_kernel>({.grid = dim3(1), .block = dim3(1), .stream = device.stream()}, NoArgs{});
}

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

class Faults : public OnEmulatedRuntime {
 protected:
  void TearDown() override {
    unsetenv("QUIRE_LAUNCH_BLOCKING");
    OnEmulatedRuntime::TearDown();
  }
};

// Everything a worker asks of a device.
void use_all_of_a_device() {
  const auto device = make_cuda_device(0);
  const auto weights = device->allocate(RegionTag::weights, 10000);
  const auto cache = device->allocate(RegionTag::kv_cache, 5000);
  const auto buffer = device->allocate_host(256);
  const auto event = device->make_event();
  const std::vector<float> values(64, 2.0f);
  device->copy_to_device(weights->data(), values.data(), 256);
  std::memset(buffer->data(), 0, 256);
  const auto graph = device->capture([&] {
    device->copy_async(weights->data(), buffer->data(), 256, device->stream());
    device->kernels().norm({.x = reinterpret_cast<float*>(weights->data()),
                            .x_stride = 64,
                            .rows = 1,
                            .dim = 64,
                            .eps = 1.0f,
                            .out = cache->data(),
                            .out_stride = 64},
                           device->stream());
  });
  graph->launch();
  event->record(device->stream());
  event->wait();
  cache->release();
  cache->restore();
  std::vector<float> got(64);
  device->copy_to_host(got.data(), weights->data(), 256);
  EXPECT_EQ(got, std::vector<float>(64, 0.0f));
}

TEST_F(Faults, MemoryThatRunsOutAnywhereLeavesNothingBehind) {
  int64_t n = 1;
  for (;; ++n) {
    cudart_emu::fail_allocation_after(n);
    try {
      use_all_of_a_device();
    } catch (const OutOfMemory& error) {
      expect_parts(error.what(), {"out of memory for ", "are free on simt:0", "failed on simt:0"});
    }
    ASSERT_EQ(cudart_emu::live(), cudart_emu::Live{}) << "after the failure of allocation " << n;
    if (cudart_emu::faults_pending()) break;
  }
  // Two streams; two regions of four steps, one twice but for its addresses; three buffers; three events; a graph.
  EXPECT_EQ(n - 1, 2 + 4 + 4 + 3 + 3 + 3 + 1);
}

TEST_F(Faults, LaunchesThatAreRefusedAreTheCallersAndNoMore) {
  for (int64_t n = 1;; ++n) {
    cudart_emu::fail_launch_after(n);
    try {
      use_all_of_a_device();
    } catch (const DeviceError& error) {
      expect_parts(error.what(), {"too many resources requested for launch", "cudaErrorLaunchOutOfResources"});
    }
    ASSERT_EQ(cudart_emu::live(), cudart_emu::Live{}) << "after the failure of launch " << n;
    if (cudart_emu::faults_pending()) break;
  }
}

TEST_F(Faults, ARegionThatCannotComeBackCanTryAgain) {
  cudart_emu::reset({.memory_bytes = 1 << 20});
  const auto device = make_cuda_device(0);
  const auto cache = device->allocate(RegionTag::kv_cache, 600 << 10);
  cache->release();
  auto other = device->allocate(RegionTag::weights, 600 << 10);
  const std::string text = message_of<OutOfMemory>([&] { cache->restore(); });
  expect_parts(text, {"kv_cache", "0.00 GiB of 0.00 GiB"});
  EXPECT_FALSE(cache->resident());
  other.reset();
  cache->restore();
  EXPECT_TRUE(cache->resident());
  device->fill_async(cache->data(), std::byte{0}, cache->num_bytes(), device->stream());
  device->synchronize();
}

TEST_F(Faults, ABrokenDeviceSaysSoOnEachCallAndIsGivenBackQuietly) {
  const auto device = make_cuda_device(0);
  const auto memory = device->allocate(RegionTag::workspace, 4096);
  const auto buffer = device->allocate_host(4096);
  const auto event = device->make_event();
  const auto graph = device->capture([&] { device->fill_async(memory->data(), std::byte{0}, 4096, device->stream()); });
  launch_lost(*device);
  event->record(device->stream());
  const std::string first = message_of<DeviceError>([&] { event->wait(); });
  expect_parts(first, {"cudaEventSynchronize failed on simt:0", "unspecified launch failure", "cudaErrorLaunchFailure",
                       "lost_kernel", "this kernel is lost", "faults_test.cpp:", "QUIRE_LAUNCH_BLOCKING=1"});
  const std::vector<std::function<void()>> calls = {
      [&] { device->synchronize(); },
      [&] { static_cast<void>(device->memory()); },
      [&] { device->allocate(RegionTag::weights, 64); },
      [&] { device->allocate_host(64); },
      [&] { device->make_event(); },
      [&] { device->copy_async(memory->data(), buffer->data(), 64, device->stream()); },
      [&] { device->fill_async(memory->data(), std::byte{0}, 64, device->stream()); },
      [&] { device->copy_to_device(memory->data(), buffer->data(), 64); },
      [&] { device->copy_to_host(buffer->data(), memory->data(), 64); },
      [&] { device->capture([] {}); },
      [&] { device->wait_for(device->stream(), *event); },
      [&] { graph->launch(); },
      [&] { event->record(device->stream()); },
      [&] { event->wait(); },
      [&] { memory->release(); },
  };
  for (size_t i = 0; i < calls.size(); ++i) {
    SCOPED_TRACE(i);
    const std::string text = message_of<DeviceError>(calls[i]);
    expect_parts(text, {"the device failed earlier: cudaEventSynchronize failed on simt:0", "lost_kernel"});
  }
}

void norm_of(const Device& device, const Region& memory) {
  device.kernels().norm({.x = reinterpret_cast<const float*>(memory.data()),
                         .x_stride = 64,
                         .rows = 1,
                         .dim = 64,
                         .eps = 1.0f,
                         .out = memory.data(),
                         .out_stride = 64},
                        device.stream());
}

// An event that cannot be made costs its span and nothing else.
TEST_F(Faults, SpansWithoutMemoryForTheirEventsAreCounted) {
  int64_t num_refused = 0;
  for (int64_t n = 1;; ++n) {
    SCOPED_TRACE(n);
    {
      const auto device = make_cuda_device(0);
      const auto memory = device->allocate(RegionTag::workspace, 256);
      device->fill_async(memory->data(), std::byte{0}, 256, device->stream());
      Recorder recorder;
      cudart_emu::fail_allocation_after(n);
      try {
        device->set_recorder(&recorder);
        device->begin_span({.category = "part", .name = "outer"});
        norm_of(*device, *memory);
        norm_of(*device, *memory);
        device->end_span();
        device->set_recorder(nullptr);
        const bool fails = !cudart_emu::faults_pending();
        EXPECT_EQ(recorder.num_dropped(), fails ? 1 : 0);
        EXPECT_EQ(recorder.spans().size(), fails ? 2u : 3u);
      } catch (const OutOfMemory& error) {
        ++num_refused;  // of the two events that tie the clocks together
        EXPECT_TRUE(recorder.spans().empty());
        device->set_recorder(nullptr);
      }
      norm_of(*device, *memory);
      device->synchronize();
    }
    ASSERT_EQ(cudart_emu::live(), cudart_emu::Live{});
    if (cudart_emu::faults_pending()) {
      EXPECT_EQ(n - 1, 2 + 5);  // two a span, and one of the first two is free again
      break;
    }
  }
  EXPECT_EQ(num_refused, 2);
}

TEST_F(Faults, ARecordingOfADeviceThatBreaksKeepsWhatWasOver) {
  set_log_sink([](LogLevel, const std::string&) {});
  const auto device = make_cuda_device(0);
  const auto memory = device->allocate(RegionTag::workspace, 256);
  device->fill_async(memory->data(), std::byte{0}, 256, device->stream());
  Recorder recorder;
  device->set_recorder(&recorder);
  norm_of(*device, *memory);
  device->synchronize();
  device->collect_spans();
  device->begin_span({.category = "part", .name = "outer"});
  norm_of(*device, *memory);
  launch_lost(*device);
  EXPECT_THROW(device->synchronize(), DeviceError);
  device->collect_spans();
  EXPECT_THROW(norm_of(*device, *memory), DeviceError);
  device->end_span();
  device->set_recorder(nullptr);
  set_log_sink({});
  ASSERT_EQ(recorder.spans().size(), 1u);
  EXPECT_EQ(recorder.num_dropped(), 3);
  EXPECT_THROW(device->set_recorder(&recorder), DeviceError);
  device->set_recorder(nullptr);
}

TEST_F(Faults, ADeviceThatGoesWhileItIsRecordedLeavesNothingBehind) {
  auto recorder = std::make_unique<Recorder>();
  auto device = make_cuda_device(0);
  const auto memory = device->allocate(RegionTag::workspace, 256);
  device->fill_async(memory->data(), std::byte{0}, 256, device->stream());
  device->set_recorder(recorder.get());
  norm_of(*device, *memory);
  recorder.reset();
  device.reset();
}

TEST_F(Faults, ErrorsWithinACaptureBreakNothing) {
  const auto device = make_cuda_device(0);
  EXPECT_THROW(device->capture([&] { device->allocate_host(64); }), DeviceError);
  cudart_emu::fail_launch_after(1);
  EXPECT_THROW(device->capture([&] { launch_lost(*device); }), DeviceError);
  const auto graph = device->capture([] {});
  graph->launch();
  device->synchronize();
}

TEST_F(Faults, BlockingLaunchesNameTheKernelAtOnce) {
  setenv("QUIRE_LAUNCH_BLOCKING", "1", 1);
  const auto device = make_cuda_device(0);
  const std::string text = message_of<DeviceError>([&] { launch_lost(*device); });
  expect_parts(text, {"launch of lost_kernel", "this kernel is lost"});
  expect_parts(message_of<DeviceError>([&] { device->synchronize(); }), {"lost_kernel", "lost to this process"});
}

TEST_F(Faults, MemoryThatIsNotPageLockedIsRefusedByAsynchronousCopies) {
  const auto device = make_cuda_device(0);
  const auto memory = device->allocate(RegionTag::workspace, 64);
  std::vector<char> pageable(64);
  const std::string text =
      message_of<DeviceError>([&] { device->copy_async(memory->data(), pageable.data(), 64, device->stream()); });
  expect_parts(text, {"cudaMemcpyAsync", "nor page-locked"});
  device->synchronize();
}

TEST_F(Faults, MachinesThatWillNotDoSayWhatTheyLack) {
  const auto open = [](int index) { return [index] { make_cuda_device(index); }; };
  cudart_emu::reset({.driver_version = 0});
  expect_parts(message_of<DeviceError>(open(0)),
               {"found no NVIDIA driver", "CUDA 13.0 or later", "device=\"cpu\"", "device=\"simt\""});
  cudart_emu::reset({.driver_version = 11040});
  expect_parts(message_of<DeviceError>(open(0)), {"driver is for CUDA 11.4", "needed is", "CUDA 13.0", "update"});
  cudart_emu::reset({.num_devices = 0});
  expect_parts(message_of<DeviceError>(open(0)), {"shows no GPU", "CUDA 13.0", "nvidia-smi -L"});
  cudart_emu::reset();
  expect_parts(message_of<DeviceError>(open(3)), {"\"simt:3\" does not exist", "1 device", "\"simt:0\""});
  cudart_emu::reset({.num_devices = 2});
  expect_parts(message_of<DeviceError>(open(2)),
               {"\"simt:2\" does not exist", "2 devices", "\"simt:0\" to \"simt:1\""});
  for (const auto& [major, minor, text] : {std::tuple{7, 5, "7.5"}, {10, 0, "10.0"}, {9, 1, "9.1"}}) {
    cudart_emu::reset({.compute_major = major, .compute_minor = minor});
    expect_parts(message_of<NotSupported>(open(0)), {std::string("compute capability ") + text, "emulated GPU", "8.0"});
  }
  for (const auto& [major, minor] : {std::pair{8, 0}, {8, 9}, {9, 0}}) {
    cudart_emu::reset({.compute_major = major, .compute_minor = minor});
    EXPECT_EQ(make_cuda_device(0)->name(), "simt");
  }
}

TEST_F(Faults, EachDeviceIsTheOneThatWasAskedFor) {
  cudart_emu::reset({.num_devices = 2});
  const auto first = make_cuda_device(0), second = make_cuda_device(1);
  int current = -1;
  static_cast<void>(first->memory());
  ASSERT_EQ(cudaGetDevice(&current), cudaSuccess);
  EXPECT_EQ(current, 0);
  static_cast<void>(second->memory());
  ASSERT_EQ(cudaGetDevice(&current), cudaSuccess);
  EXPECT_EQ(current, 1);
}

}  // namespace
}  // namespace quire
