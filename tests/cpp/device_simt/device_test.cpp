// The CUDA device through its interface: regions, copies, events, graphs, with kernels of the table.
//
// Compiled twice, for the emulated runtime (test_device_simt) and for a GPU (test_device_cuda). The emulation does
// nothing before somebody waits, so what is read here without a wait is wrong there.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "base/check.h"
#include "base/recorder.h"
#include "device/cuda/cuda_device.h"

namespace quire {
namespace {

class OnCudaDevice : public testing::Test {
 protected:
  std::unique_ptr<Device> device_ = make_cuda_device(0);

  std::unique_ptr<Region> region(size_t num_bytes) { return device_->allocate(RegionTag::workspace, num_bytes); }

  template <typename T>
  std::vector<T> fetch(const void* address, size_t count) {
    std::vector<T> values(count);
    device_->copy_to_host(values.data(), address, count * sizeof(T));
    return values;
  }
  template <typename T>
  void put(void* address, const std::vector<T>& values) {
    device_->copy_to_device(address, values.data(), values.size() * sizeof(T));
  }
  // x = norm(x) in place, rms without weight.
  NormParams norm_params(void* x, int64_t rows, int64_t dim) const {
    return {.x = static_cast<const float*>(x), .x_stride = dim, .rows = rows, .dim = dim, .out = x, .out_stride = dim};
  }
};

std::vector<float> ramp(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i % 97) - 40.5f;
  return values;
}

// In double precision, one row.
std::vector<float> rms_normed(const std::vector<float>& x) {
  const double squares = std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
  std::vector<float> y;
  for (const float value : x)
    y.push_back(static_cast<float>(value / std::sqrt(squares / static_cast<double>(x.size()))));
  return y;
}

void expect_near(const std::vector<float>& got, const std::vector<float>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 1e-5f) << "element " << i;
}

TEST_F(OnCudaDevice, SaysWhatItIs) {
  EXPECT_EQ(device_->name(), device_->kernels().name);
  EXPECT_TRUE(device_->is_asynchronous());
  EXPECT_NE(device_->stream().handle, nullptr);
  EXPECT_NE(device_->copy_stream().handle, nullptr);
  EXPECT_NE(device_->copy_stream().handle, device_->stream().handle);
}

TEST_F(OnCudaDevice, CountsMemoryOfRegions) {
  const DeviceMemory before = device_->memory();
  EXPECT_GT(before.available_bytes, 0);
  EXPECT_LE(before.available_bytes, before.total_bytes);
  constexpr size_t kBytes = size_t{64} << 20;
  auto memory = region(kBytes);
  EXPECT_EQ(memory->num_bytes(), kBytes);
  EXPECT_LE(device_->memory().available_bytes, before.available_bytes - static_cast<int64_t>(kBytes));
  memory->release();
  EXPECT_FALSE(memory->resident());
  // Page tables may stay behind.
  const int64_t nearly_all = before.available_bytes - static_cast<int64_t>(kBytes / 4);
  EXPECT_GE(device_->memory().available_bytes, nearly_all);
  memory->restore();
  EXPECT_TRUE(memory->resident());
  EXPECT_LT(device_->memory().available_bytes, nearly_all);
  memory.reset();
  EXPECT_GE(device_->memory().available_bytes, nearly_all);
}

TEST_F(OnCudaDevice, RegionsKeepTheirAddressesWhileTheirMemoryIsAway) {
  const auto memory = region(1000);
  std::byte* const address = memory->data();
  ASSERT_NE(address, nullptr);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(address) % 256, 0u);
  EXPECT_EQ(memory->tag(), RegionTag::workspace);
  for (int turn = 0; turn < 3; ++turn) {
    const std::vector<int32_t> values(250, turn);
    put(address, values);
    EXPECT_EQ(fetch<int32_t>(address, 250), values);
    memory->release();
    memory->release();  // is no error
    memory->restore();
    memory->restore();
    EXPECT_EQ(memory->data(), address);
  }
}

TEST_F(OnCudaDevice, EmptyRegionsAndBuffersAreNoError) {
  const auto memory = region(0);
  EXPECT_EQ(memory->num_bytes(), 0u);
  memory->release();
  memory->restore();
  EXPECT_EQ(device_->allocate_host(0)->num_bytes(), 0u);
  device_->copy_async(nullptr, nullptr, 0, device_->stream());
  device_->copy_to_device(nullptr, nullptr, 0);
}

// More than a piece of the staging buffer, and no multiple of one.
TEST_F(OnCudaDevice, CopiesOfAnySizeArriveWhole) {
  for (const size_t count : {size_t{1}, size_t{4} << 20, (size_t{13} << 20) + 7}) {
    std::vector<uint8_t> values(count);
    for (size_t i = 0; i < count; ++i) values[i] = static_cast<uint8_t>(i * 2654435761u >> 24);
    const auto memory = region(count);
    put(memory->data(), values);
    EXPECT_TRUE(fetch<uint8_t>(memory->data(), count) == values) << count << " bytes";
  }
}

TEST_F(OnCudaDevice, AsynchronousCopiesKeepTheOrderOfTheirStream) {
  const auto memory = region(4096);
  const auto to = device_->allocate_host(4096), from = device_->allocate_host(4096);
  std::memset(to->data(), 7, 4096);
  device_->copy_async(memory->data(), to->data(), 4096, device_->stream());
  device_->fill_async(memory->data() + 1024, std::byte{9}, 1024, device_->stream());
  device_->copy_async(from->data(), memory->data(), 4096, device_->stream());
  device_->synchronize();
  for (size_t i = 0; i < 4096; ++i) {
    ASSERT_EQ(std::to_integer<int>(from->data()[i]), i >= 1024 && i < 2048 ? 9 : 7) << "byte " << i;
  }
}

TEST_F(OnCudaDevice, KernelsRunBetweenCopies) {
  for (const size_t dim : {size_t{64}, size_t{4096}}) {
    const auto memory = region(dim * sizeof(float));
    put(memory->data(), ramp(dim));
    device_->kernels().norm(norm_params(memory->data(), 1, static_cast<int64_t>(dim)), device_->stream());
    expect_near(fetch<float>(memory->data(), dim), rms_normed(ramp(dim)));
  }
}

TEST_F(OnCudaDevice, EventsOrderTheTwoStreams) {
  constexpr size_t kDim = 1024, kBytes = kDim * sizeof(float);
  const auto memory = region(kBytes);
  const auto to = device_->allocate_host(kBytes), from = device_->allocate_host(kBytes);
  const std::vector<float> x = ramp(kDim);
  std::memcpy(to->data(), x.data(), kBytes);
  const auto uploaded = device_->make_event(), computed = device_->make_event(), fetched = device_->make_event();
  device_->copy_async(memory->data(), to->data(), kBytes, device_->copy_stream());
  uploaded->record(device_->copy_stream());
  device_->wait_for(device_->stream(), *uploaded);
  device_->kernels().norm(norm_params(memory->data(), 1, kDim), device_->stream());
  computed->record(device_->stream());
  device_->wait_for(device_->copy_stream(), *computed);
  device_->copy_async(from->data(), memory->data(), kBytes, device_->copy_stream());
  fetched->record(device_->copy_stream());
  fetched->wait();
  std::vector<float> got(kDim);
  std::memcpy(got.data(), from->data(), kBytes);
  expect_near(got, rms_normed(x));
}

TEST_F(OnCudaDevice, EventsThatWereNeverRecordedAreDone) {
  const auto event = device_->make_event();
  event->wait();
  device_->wait_for(device_->stream(), *event);
  device_->synchronize();
}

TEST_F(OnCudaDevice, GraphsDoTheirWorkAtEachLaunchAndNotBefore) {
  constexpr size_t kDim = 512, kBytes = kDim * sizeof(float);
  const auto memory = region(kBytes);
  const auto to = device_->allocate_host(kBytes);
  put(memory->data(), std::vector<float>(kDim, 3.0f));
  const auto graph = device_->capture([&] {
    device_->copy_async(memory->data(), to->data(), kBytes, device_->stream());
    device_->kernels().norm(norm_params(memory->data(), 1, kDim), device_->stream());
  });
  ASSERT_NE(graph, nullptr);
  EXPECT_EQ(fetch<float>(memory->data(), kDim), std::vector<float>(kDim, 3.0f)) << "a capture does nothing";
  for (const float scale : {1.0f, -2.0f}) {
    std::vector<float> x = ramp(kDim);
    for (float& value : x) value *= scale;
    std::memcpy(to->data(), x.data(), kBytes);  // read by the launch, not by the capture
    graph->launch();
    device_->synchronize();
    expect_near(fetch<float>(memory->data(), kDim), rms_normed(x));
  }
}

TEST_F(OnCudaDevice, GraphsReachTheCopyStreamThroughEvents) {
  constexpr size_t kBytes = 2048;
  const auto memory = region(kBytes);
  const auto from = device_->allocate_host(kBytes);
  const auto begun = device_->make_event(), filled = device_->make_event();
  const auto graph = device_->capture([&] {
    begun->record(device_->stream());
    device_->wait_for(device_->copy_stream(), *begun);
    device_->fill_async(memory->data(), std::byte{5}, kBytes, device_->copy_stream());
    filled->record(device_->copy_stream());
    device_->wait_for(device_->stream(), *filled);
    device_->copy_async(from->data(), memory->data(), kBytes, device_->stream());
  });
  std::memset(from->data(), 0, kBytes);
  graph->launch();
  device_->synchronize();
  for (size_t i = 0; i < kBytes; ++i) ASSERT_EQ(std::to_integer<int>(from->data()[i]), 5) << "byte " << i;
}

// What fails while it is recorded is the caller's to see, and the device goes on.
TEST_F(OnCudaDevice, FailedCapturesLeaveTheDeviceWorking) {
  const auto memory = region(256);
  EXPECT_THROW(device_->capture([] { throw std::domain_error("the body"); }), std::domain_error);
  EXPECT_THROW(device_->capture([&] { device_->synchronize(); }), DeviceError);
  const auto begun = device_->make_event();
  EXPECT_THROW(device_->capture([&] {  // work on another stream that the first never waits for
    begun->record(device_->stream());
    device_->wait_for(device_->copy_stream(), *begun);
    device_->fill_async(memory->data(), std::byte{1}, 256, device_->copy_stream());
  }),
               DeviceError);
  device_->synchronize();
  const auto graph =
      device_->capture([&] { device_->fill_async(memory->data(), std::byte{2}, 256, device_->stream()); });
  graph->launch();
  EXPECT_EQ(fetch<uint8_t>(memory->data(), 256), std::vector<uint8_t>(256, 2));
}

TEST_F(OnCudaDevice, TooLittleMemoryNamesTheRegionAndLosesNothing) {
  const DeviceMemory before = device_->memory();
  try {
    device_->allocate(RegionTag::kv_cache, static_cast<size_t>(before.total_bytes) + (size_t{1} << 30));
    FAIL() << "more memory than there is";
  } catch (const OutOfMemory& error) {
    const std::string text = error.what();
    for (const char* part : {"kv_cache", "GiB", "are free", "cuMemCreate", "gpu_memory_utilization"}) {
      EXPECT_NE(text.find(part), std::string::npos) << part << " is not in: " << text;
    }
  }
  EXPECT_GE(device_->memory().available_bytes, before.available_bytes - (int64_t{16} << 20));
  const auto memory = region(1024);
  put(memory->data(), std::vector<uint8_t>(1024, 3));
  EXPECT_EQ(fetch<uint8_t>(memory->data(), 1024), std::vector<uint8_t>(1024, 3));
}

// Memory goes when what uses it is done, not before.
TEST_F(OnCudaDevice, MemoryThatGoesIsWaitedFor) {
  constexpr size_t kBytes = size_t{1} << 20;
  auto memory = region(kBytes), other = region(kBytes);
  auto buffer = device_->allocate_host(kBytes);
  auto graph = device_->capture([&] { device_->fill_async(other->data(), std::byte{1}, kBytes, device_->stream()); });
  device_->fill_async(memory->data(), std::byte{1}, kBytes, device_->copy_stream());
  memory->release();
  device_->synchronize();  // throws what the streams found freed
  memory->restore();
  device_->copy_async(buffer->data(), memory->data(), kBytes, device_->stream());
  memory.reset();
  device_->copy_async(other->data(), buffer->data(), kBytes, device_->copy_stream());
  buffer.reset();
  graph->launch();
  graph.reset();
  other.reset();
  device_->synchronize();
}

TEST_F(OnCudaDevice, PartsOutliveTheDevice) {
  const auto memory = region(256);
  const auto buffer = device_->allocate_host(256);
  const auto event = device_->make_event();
  device_->fill_async(memory->data(), std::byte{1}, 256, device_->stream());
  device_.reset();
  event->wait();
  std::memset(buffer->data(), 1, 256);
}

// What is put on the stream while somebody records, with times of the device in the order of the stream: nothing begins
// before it was launched or ends after it was waited for.
TEST_F(OnCudaDevice, RecordsPartsAndKernelsOfItsStream) {
  constexpr size_t kDim = 512, kBytes = kDim * sizeof(float);
  const auto memory = region(kBytes);
  const KernelTable& kernels = device_->kernels();
  const auto launch = [&] { kernels.norm(norm_params(memory->data(), 1, kDim), device_->stream()); };
  put(memory->data(), ramp(kDim));
  launch();
  const std::vector<float> plain = fetch<float>(memory->data(), kDim);
  Recorder recorder;
  device_->set_recorder(&recorder);
  EXPECT_EQ(&kernels, &device_->kernels());
  Span part;
  part.category = "part";
  part.name = "half";
  int64_t launched = 0;
  for (int turn = 0; turn < 3; ++turn) {
    put(memory->data(), ramp(kDim));
    launched = Recorder::now_ns();
    device_->begin_span(part);
    launch();
    device_->end_span();
    launch();
    EXPECT_EQ(std::ssize(recorder.spans()), 3 * turn);
    device_->synchronize();
    device_->collect_spans();
    EXPECT_EQ(std::ssize(recorder.spans()), 3 * (turn + 1));
  }
  const int64_t waited = Recorder::now_ns();
  put(memory->data(), ramp(kDim));
  launch();
  device_->collect_spans();
  device_->set_recorder(nullptr);  // waits for what is left
  EXPECT_EQ(fetch<float>(memory->data(), kDim), plain);
  launch();
  device_->collect_spans();
  device_->synchronize();
  ASSERT_EQ(recorder.spans().size(), 10u);
  EXPECT_EQ(recorder.num_dropped(), 0);
  int64_t end = 0;
  for (size_t i = 0; i < 10; ++i) {
    const Span& span = recorder.spans()[i];
    EXPECT_TRUE(span.on_device);
    EXPECT_STREQ(span.name, i % 3 == 1 ? "half" : "norm") << i;
    EXPECT_STREQ(span.category, i % 3 == 1 ? "part" : "kernel");
    EXPECT_GT(span.duration_ns, 0);
    if (i % 3 == 1) {  // what is in it ended before it
      EXPECT_LT(span.begin_ns, recorder.spans()[i - 1].begin_ns);
      EXPECT_GT(span.begin_ns + span.duration_ns, end);
    } else {
      EXPECT_GT(span.begin_ns, end);
      EXPECT_EQ(span.num_arguments, 4);
    }
    end = span.begin_ns + span.duration_ns;
  }
  const Span& last = recorder.spans()[8];
  EXPECT_GE(recorder.spans()[6].begin_ns, launched);
  // Times are late by what it took to read the clocks together.
  EXPECT_LT(last.begin_ns + last.duration_ns, waited + 50'000'000);
}

TEST(CudaDevices, OfAnotherNumberAreRefusedByName) {
  try {
    make_cuda_device(1000);
    FAIL();
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find(":1000\" does not exist"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace quire
