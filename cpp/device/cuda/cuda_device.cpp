// Streams, events, graphs and copies of a CUDA device; see cuda_device.h.
//
// Two streams: one for kernels, one for copies beside them. Copies from and to memory that is not page-locked go
// through two page-locked pieces of their own, so that no call depends on what the runtime does with such memory.
#include "device/cuda/cuda_device.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "cuda/comm/nccl.h"
#include "cuda/cuda_kernels.h"
#include "cuda/gemm/cublaslt.h"
#include "device/cuda/context.h"
#include "device/cuda/memory.h"
#include "device/cuda/nccl_ranks.h"
#include "device/cuda/recorded_launches.h"
#include "device/cuda/stream_spans.h"

namespace quire {
namespace {

constexpr size_t kStagingBytes = size_t{4} << 20;

cudaStream_t cuda_stream(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

class CudaEvent final : public Event {
 public:
  explicit CudaEvent(std::shared_ptr<CudaContext> context) : context_(std::move(context)) {
    context_->use();
    context_->check_memory(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags",
                           "an event");
  }
  ~CudaEvent() override {
    static_cast<void>(cudaEventDestroy(event_));
    static_cast<void>(cudaGetLastError());
  }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  void record(Stream stream) override {
    context_->use();
    context_->check(cudaEventRecord(event_, cuda_stream(stream)), "cudaEventRecord");
  }
  void wait() override {
    context_->use();
    context_->check(cudaEventSynchronize(event_), "cudaEventSynchronize");
  }
  cudaEvent_t get() const { return event_; }

 private:
  std::shared_ptr<CudaContext> context_;
  cudaEvent_t event_ = nullptr;
};

class CudaGraph final : public Graph {
 public:
  // Takes the graph that was captured.
  CudaGraph(std::shared_ptr<CudaContext> context, cudaGraph_t graph) : context_(std::move(context)) {
    const cudaError_t error = cudaGraphInstantiate(&exec_, graph, 0);
    static_cast<void>(cudaGraphDestroy(graph));
    context_->check_memory(error, "cudaGraphInstantiate", "a graph");
  }
  // A launch that is still under way ends first.
  ~CudaGraph() override {
    context_->quiesce();
    static_cast<void>(cudaGraphExecDestroy(exec_));
    static_cast<void>(cudaGetLastError());
  }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  void launch() override {
    context_->use();
    context_->check(cudaGraphLaunch(exec_, context_->compute_stream()), "cudaGraphLaunch");
  }

 private:
  std::shared_ptr<CudaContext> context_;
  cudaGraphExec_t exec_ = nullptr;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int index) : context_(std::make_shared<CudaContext>(index)) {}

  std::string name() const override { return cuda::kernels().name; }
  const KernelTable& kernels() const override { return kernels_; }
  Stream stream() const override { return {context_->compute_stream()}; }
  Stream copy_stream() const override { return {context_->copy_stream()}; }
  int num_threads() const override { return 1; }  // workspaces are shared out by blocks, not by threads of the host
  bool is_asynchronous() const override { return true; }
  bool usable() const override { return context_->usable(); }

  Library product_library() const override {
    return {.is_found = cuda::cublaslt_functions() != nullptr, .status = cuda::cublaslt_status()};
  }

  Library collective_library() const override {
    return {.is_found = cuda::nccl_functions() != nullptr, .status = cuda::nccl_status()};
  }
  std::unique_ptr<CollectiveLibrary> open_collectives(std::span<Device* const> devices) override {
    std::vector<std::shared_ptr<CudaContext>> contexts;
    for (const Device* device : devices) contexts.push_back(of_this_kind(device).context_);
    return make_nccl_ranks(std::move(contexts));
  }

  DeviceMemory memory() const override {
    context_->use();
    size_t free_bytes = 0, total_bytes = 0;
    context_->check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
    return {.total_bytes = static_cast<int64_t>(total_bytes), .available_bytes = static_cast<int64_t>(free_bytes)};
  }

  void share_memory_with(std::span<Device* const> devices) override {
    std::vector<int> peers;
    for (const Device* device : devices) {
      const int index = of_this_kind(device).context_->index();
      if (index != context_->index() && std::ranges::count(peers, index) == 0) peers.push_back(index);
    }
    context_->set_peers(std::move(peers));
  }
  std::unique_ptr<Region> allocate(RegionTag tag, size_t num_bytes) override {
    return make_cuda_region(context_, tag, num_bytes);
  }
  std::unique_ptr<HostBuffer> allocate_host(size_t num_bytes) override {
    return make_cuda_host_buffer(context_, num_bytes);
  }

  void copy_to_device(void* destination, const void* source, size_t num_bytes) override {
    prepare_staging();
    for (size_t at = 0; at < num_bytes; at += kStagingBytes) {
      Staging& piece = staging_[at / kStagingBytes % 2];
      const size_t bytes = std::min(kStagingBytes, num_bytes - at);
      piece.is_free->wait();
      std::memcpy(piece.buffer->data(), static_cast<const std::byte*>(source) + at, bytes);
      copy_async(static_cast<std::byte*>(destination) + at, piece.buffer->data(), bytes, stream());
      piece.is_free->record(stream());
    }
    wait_for_compute();
  }

  void copy_to_host(void* destination, const void* source, size_t num_bytes) override {
    prepare_staging();
    for (size_t at = 0; at < num_bytes; at += kStagingBytes) {
      const std::byte* const piece = staging_[0].buffer->data();
      const size_t bytes = std::min(kStagingBytes, num_bytes - at);
      copy_async(staging_[0].buffer->data(), static_cast<const std::byte*>(source) + at, bytes, stream());
      wait_for_compute();
      std::memcpy(static_cast<std::byte*>(destination) + at, piece, bytes);
    }
    wait_for_compute();
  }

  void copy_async(void* destination, const void* source, size_t num_bytes, Stream stream) override {
    context_->use();
    if (num_bytes == 0) return;
    context_->check(cudaMemcpyAsync(destination, source, num_bytes, cudaMemcpyDefault, cuda_stream(stream)),
                    "cudaMemcpyAsync");
  }
  void fill_async(void* destination, std::byte value, size_t num_bytes, Stream stream) override {
    context_->use();
    if (num_bytes == 0) return;
    context_->check(cudaMemsetAsync(destination, static_cast<int>(value), num_bytes, cuda_stream(stream)),
                    "cudaMemsetAsync");
  }

  std::unique_ptr<Event> make_event() override { return std::make_unique<CudaEvent>(context_); }
  void wait_for(Stream stream, const Event& event) override {
    const auto* const own = dynamic_cast<const CudaEvent*>(&event);
    QUIRE_CHECK(own != nullptr, "an event of another device");
    context_->use();
    context_->check(cudaStreamWaitEvent(cuda_stream(stream), own->get(), 0), "cudaStreamWaitEvent");
  }

  // Thread-local: what other threads allocate meanwhile is none of its business; what this one allocates is an error.
  std::unique_ptr<Graph> capture(const std::function<void()>& body) override {
    context_->use();
    const cudaStream_t stream = context_->compute_stream();
    context_->check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    cudaGraph_t graph = nullptr;
    try {
      body();
    } catch (...) {
      static_cast<void>(cudaStreamEndCapture(stream, &graph));
      if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
      static_cast<void>(cudaGetLastError());
      throw;
    }
    context_->check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    return std::make_unique<CudaGraph>(context_, graph);
  }

  void synchronize() override { context_->synchronize(); }

  void set_recorder(Recorder* recorder) override {
    if (spans_ != nullptr) spans_->finish();
    spans_.reset();
    kernels_ = cuda::kernels();
    if (recorder == nullptr) return;
    spans_ = std::make_unique<StreamSpans>(context_, *recorder);
    kernels_ = recorded_launches();
  }
  void begin_span(const Span& span) noexcept override {
    if (spans_ != nullptr) spans_->begin(span);
  }
  void end_span() noexcept override {
    if (spans_ != nullptr) spans_->end();
  }
  void collect_spans() noexcept override {
    if (spans_ != nullptr) spans_->collect();
  }

 private:
  static const CudaDevice& of_this_kind(const Device* device) {
    const auto* const it = dynamic_cast<const CudaDevice*>(device);
    QUIRE_CHECK(it != nullptr, "a device of another kind");
    return *it;
  }

  struct Staging {
    std::unique_ptr<HostBuffer> buffer;
    std::unique_ptr<Event> is_free;
  };

  void prepare_staging() {
    for (Staging& piece : staging_) {
      if (!piece.buffer) piece.buffer = allocate_host(kStagingBytes);
      if (!piece.is_free) piece.is_free = make_event();
    }
  }
  void wait_for_compute() {
    context_->use();
    context_->check(cudaStreamSynchronize(context_->compute_stream()), "cudaStreamSynchronize");
  }

  std::shared_ptr<CudaContext> context_;
  KernelTable kernels_ = cuda::kernels();  // those, or what records them
  std::unique_ptr<StreamSpans> spans_;     // null: nobody records
  std::array<Staging, 2> staging_;
};

}  // namespace

std::unique_ptr<Device> make_cuda_device(int index) { return std::make_unique<CudaDevice>(index); }

}  // namespace quire
