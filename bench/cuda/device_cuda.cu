// The device of bench_cuda_kernels: the current GPU, one stream, events around replays of a graph of launches.
#include <algorithm>
#include <exception>

#include "base/check.h"
#include "cuda/device.h"
#include "cuda/device_kernels.cuh"

namespace quire::bench {
namespace {

using simt::check_cuda;

constexpr size_t kMaxArenaBytes = size_t{48} << 30;
constexpr size_t kToyArenaBytes = size_t{256} << 20;
constexpr double kSampleMicroseconds = 1500;
constexpr int kSamples = 9;
constexpr int kMaxLaunches = 256;

class CudaDevice : public Device {
 public:
  explicit CudaDevice(bool is_toy) {
    int device = 0;
    check_cuda(cudaGetDevice(&device), "cudaGetDevice");
    cudaDeviceProp properties{};
    check_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    machine_.backend = "cuda";
    machine_.name = properties.name;
    machine_.num_multiprocessors = properties.multiProcessorCount;
    machine_.memory_bytes = properties.totalGlobalMem;
    machine_.cache_bytes = static_cast<size_t>(properties.l2CacheSize);
    check_cuda(cudaDriverGetVersion(&machine_.driver_version), "cudaDriverGetVersion");
    check_cuda(cudaRuntimeGetVersion(&machine_.runtime_version), "cudaRuntimeGetVersion");
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    check_cuda(cudaEventCreate(&begin_), "cudaEventCreate");
    check_cuda(cudaEventCreate(&end_), "cudaEventCreate");
    size_t free_bytes = 0, total_bytes = 0;
    check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
    arena_bytes_ = is_toy ? kToyArenaBytes : std::min(kMaxArenaBytes, free_bytes / 10 * 8);
    void* arena = nullptr;
    check_cuda(cudaMalloc(&arena, arena_bytes_), "cudaMalloc");
    arena_ = static_cast<char*>(arena);
    used_bytes_ = arena_bytes_;
    Device::begin_case();
  }

  Stream stream() override { return {stream_}; }

  void write(void* to, const void* from, size_t bytes) override {
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
    check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }
  void zero(void* to, size_t bytes) override { check_cuda(cudaMemsetAsync(to, 0, bytes, stream_), "cudaMemsetAsync"); }
  void fill_normal(float* to, int64_t count, float deviation, uint64_t seed) override {
    QUIRE_CHECK(count % 4 == 0, count);
    simt::launch<fill_normal_kernel>(wide_grid(256), FillArgs{to, count / 4, deviation, seed});
  }

  Timing time(int copies, const std::function<void(int)>& launch) override {
    for (int i = 0; i < copies; ++i) launch(i);  // everything is loaded, and errors show
    check_cuda(cudaStreamSynchronize(stream_), "a launch");
    const double estimate = sample([&] { launch_some(4, copies, launch); }) / 4;
    int count = static_cast<int>(std::clamp(kSampleMicroseconds / estimate, 1.0, double{kMaxLaunches}));
    count = std::max(copies, (count + copies - 1) / copies * copies);
    return time_graph(count, copies, launch);
  }

  double copy_bytes_per_second() override {
    const size_t half = std::min(arena_bytes_ / 2, size_t{2} << 30) / 256 * 256;
    const double time = best([&] {
      check_cuda(cudaMemcpyAsync(arena_ + half, arena_, half, cudaMemcpyDeviceToDevice, stream_), "cudaMemcpyAsync");
    });
    return 2.0 * static_cast<double>(half) / time * 1e6;
  }

  double read_bytes_per_second() override {
    const size_t bytes = std::min(arena_bytes_ / 2, size_t{4} << 30) / 256 * 256;
    auto* const sink = reinterpret_cast<uint32_t*>(arena_ + bytes);
    const ReadArgs args{reinterpret_cast<const uint4*>(arena_), static_cast<int64_t>(bytes / 16), sink};
    const double time = best([&] { simt::launch<read_kernel>(wide_grid(512), args); });
    return static_cast<double>(bytes) / time * 1e6;
  }

 protected:
  void fill_uniform_bf16(void* to, size_t bytes) override {
    if (bytes < 16) return;
    simt::launch<fill_uniform_kernel>(wide_grid(256), FillArgs{to, static_cast<int64_t>(bytes / 16), 0, 1});
  }

 private:
  simt::LaunchConfig wide_grid(unsigned threads) const {
    const auto blocks = static_cast<unsigned>(machine_.num_multiprocessors) * (2048 / threads);
    return {.grid = dim3(blocks), .block = dim3(threads), .stream = {stream_}};
  }

  static void launch_some(int count, int copies, const std::function<void(int)>& launch) {
    for (int i = 0; i < count; ++i) launch(i % copies);
  }

  // Microseconds between the events around work().
  template <typename Work>
  double sample(const Work& work) {
    check_cuda(cudaEventRecord(begin_, stream_), "cudaEventRecord");
    work();
    check_cuda(cudaEventRecord(end_, stream_), "cudaEventRecord");
    check_cuda(cudaEventSynchronize(end_), "a launch");
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime");
    return std::max(1e-3, double{ms} * 1e3);
  }

  template <typename Work>
  double best(const Work& work) {
    double lowest = sample(work);
    for (int i = 0; i < 8; ++i) lowest = std::min(lowest, sample(work));
    return lowest;
  }

  template <typename Work>
  Timing samples_of(int count, const char* method, const Work& work) {
    sample(work);
    std::vector<double> samples;
    for (int i = 0; i < kSamples; ++i) samples.push_back(sample(work) / count);
    return summarise(samples, count, method);
  }

  // A graph has no host between its launches. What cannot be captured is timed as a loop.
  Timing time_graph(int count, int copies, const std::function<void(int)>& launch) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    bool is_captured = true;
    try {
      launch_some(count, copies, launch);
    } catch (const std::exception&) {
      is_captured = false;
    }
    is_captured = cudaStreamEndCapture(stream_, &graph) == cudaSuccess && is_captured;
    is_captured = is_captured && cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess;
    static_cast<void>(cudaGetLastError());
    Timing timing;
    if (is_captured) {
      timing = samples_of(count, "graph", [&] { check_cuda(cudaGraphLaunch(executable, stream_), "cudaGraphLaunch"); });
    } else {
      timing = samples_of(count, "loop", [&] { launch_some(count, copies, launch); });
    }
    if (executable != nullptr) static_cast<void>(cudaGraphExecDestroy(executable));
    if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
    return timing;
  }

  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace

Device* open_device(bool is_toy, std::string* problem) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    *problem = error == cudaSuccess ? "no CUDA device" : str_cat("no CUDA device: ", cudaGetErrorString(error));
    return nullptr;
  }
  static CudaDevice device(is_toy);
  return &device;
}

}  // namespace quire::bench
