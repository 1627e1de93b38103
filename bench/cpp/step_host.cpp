// The host's share of a decode step on a GPU: what the scheduler, the batch, the upload and the books of a step cost
// when the device costs nothing.
//
// The device of this benchmark drops copies and launches. plan_and_upload is what stands before a step's first kernel
// (Scheduler::plan, SamplingBatch, RowState::upload); engine_step is a whole Engine::step, with fetch, commit and
// callbacks. The goal is 30 us for plan_and_upload at 256 sequences. Arguments: sequences, tokens of context, and for
// engine_step the requests that wait behind them, which should cost a step nothing.
#include <benchmark/benchmark.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <vector>

#include "engine/engine.h"
#include "engine/row_state.h"

namespace quire {
namespace {

class DroppedGraph final : public Graph {
 public:
  void launch() override {}
};

// Memory of the host, kernels and copies that do nothing.
class DroppingDevice final : public Device {
 public:
  DroppingDevice() : kernels_(host_->kernels()) {
    kernels_.pack_weight = [](const PackWeightParams&, Stream) {};
    kernels_.fill_dummy = [](const FillDummyParams&, Stream) {};
    kernels_.embedding = [](const EmbeddingParams&, Stream) {};
    kernels_.norm = [](const NormParams&, Stream) {};
    kernels_.gemm = [](const GemmParams&, Stream) {};
    kernels_.rope_kv_write = [](const RopeKvWriteParams&, Stream) {};
    kernels_.paged_attention = [](const PagedAttentionParams&, Stream) {};
    kernels_.plan_attention = [](const PagedAttentionParams&, Stream) {};
    kernels_.sample = [](const SamplingParamsBlock&, Stream) {};
    kernels_.update_rows = [](const UpdateRowsParams&, Stream) {};
    kernels_.prepare_batch = [](const PrepareBatchParams&, Stream) {};
    kernels_.store_sampled = [](const StoreSampledParams&, Stream) {};
  }
  std::string name() const override { return "dropping"; }
  const KernelTable& kernels() const override { return kernels_; }
  Stream stream() const override { return host_->stream(); }
  int num_threads() const override { return 1; }
  DeviceMemory memory() const override {
    return {.total_bytes = int64_t{64} << 30, .available_bytes = int64_t{64} << 30};
  }
  bool is_asynchronous() const override { return true; }
  std::unique_ptr<Region> allocate(RegionTag tag, size_t n) override { return host_->allocate(tag, n); }
  std::unique_ptr<HostBuffer> allocate_host(size_t n) override { return host_->allocate_host(n); }
  void copy_to_device(void*, const void*, size_t) override {}
  void copy_to_host(void*, const void*, size_t) override {}
  void copy_async(void*, const void*, size_t, Stream) override {}
  void fill_async(void*, std::byte, size_t, Stream) override {}
  std::unique_ptr<Event> make_event() override { return host_->make_event(); }
  void wait_for(Stream, const Event&) override {}
  std::unique_ptr<Graph> capture(const std::function<void()>&) override { return std::make_unique<DroppedGraph>(); }
  void synchronize() override {}

 private:
  std::unique_ptr<Device> host_ = make_host_device({.num_threads = 1});
  KernelTable kernels_;
};

constexpr int64_t kNumTokens = 1'000'000;  // of output, so that nobody ends

SamplingParams drawn() { return {.temperature = 0.8f, .top_p = 0.9f, .ignore_eos = true}; }

void plan_and_upload(benchmark::State& state) {
  const int64_t num_seqs = state.range(0), context = state.range(1);
  const int64_t max_len = context + 100'000;
  const SchedulerOptions options = {.num_blocks = static_cast<int32_t>(num_seqs * (max_len / 16 + 1)),
                                    .block_size = 16,
                                    .max_num_batched_tokens = num_seqs * context,
                                    .max_num_seqs = num_seqs,
                                    .max_model_len = max_len,
                                    .device_rows = true};
  DroppingDevice device;
  Scheduler scheduler(options);
  RowBuffers buffers;
  const size_t num_bytes = place_row_buffers(options, nullptr, buffers);
  const auto region = device.allocate(RegionTag::workspace, num_bytes);
  place_row_buffers(options, region->data(), buffers);
  RowState rows(device, options, buffers);
  for (int64_t i = 0; i < num_seqs; ++i) {
    auto request = std::make_unique<Request>();
    request->id = static_cast<uint64_t>(i);
    request->params = drawn();
    // Lengths differ, so that some sequence begins a block in every step.
    request->prompt.assign(static_cast<size_t>(context - i % 16), static_cast<int32_t>(i));
    request->max_total_tokens = max_len;
    scheduler.add(std::move(request));
  }
  Batch batch;
  SamplingBatch sampling;
  const std::vector<int32_t> sampled(static_cast<size_t>(num_seqs), 7);
  const auto plan = [&] {
    scheduler.plan(batch);
    sampling.clear();
    for (int32_t i = 0; i < batch.num_samples(); ++i) sampling.count(scheduler.sampled_sequence(i).request->params);
    rows.upload(batch, sampling);
  };
  const auto commit = [&] { scheduler.commit(batch, std::span(sampled).first(size_t(batch.num_samples()))); };
  for (int i = 0; i < 3; ++i) {
    plan();
    commit();
  }
  for (auto _ : state) {
    plan();
    state.PauseTiming();
    commit();
    state.ResumeTiming();
  }
  state.counters["sequences"] = static_cast<double>(batch.num_seqs());
}
BENCHMARK(plan_and_upload)
    ->Args({1, 1024})
    ->Args({64, 1024})
    ->Args({256, 1024})
    ->Args({256, 8192})
    ->Iterations(20'000)
    ->Unit(benchmark::kMicrosecond);

std::filesystem::path model_folder() {
  const auto folder = std::filesystem::temp_directory_path() / "quire_bench_step_host";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "config.json")
      << R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
             "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 1000,
             "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "torch_dtype": "float32"})";
  return folder;
}

void engine_step(benchmark::State& state) {
  const int64_t num_seqs = state.range(0), context = state.range(1);
  auto device = std::make_unique<DroppingDevice>();
  EngineConfig config = resolve_engine_config(
      model_folder(),
      {.max_model_len = context + 30'000, .max_num_seqs = num_seqs, .max_num_batched_tokens = num_seqs * context},
      *device);
  Engine engine(std::move(config), std::move(device), nullptr);
  SamplingParams params = drawn();
  params.max_tokens = static_cast<int32_t>(kNumTokens);
  int64_t num_told = 0;
  for (int64_t i = 0; i < num_seqs; ++i) {
    engine.submit(
        std::vector<int32_t>(size_t(context - i % 16), 7), params, [&](const Delta&) { ++num_told; }, Notify::finished);
  }
  for (int64_t i = 0; i < state.range(2); ++i) {
    engine.submit(
        std::vector<int32_t>(128, static_cast<int32_t>(i % 1000)), params, [](const Delta&) {}, Notify::finished);
  }
  for (int i = 0; i < 4; ++i) engine.step();
  for (auto _ : state) engine.step();
  state.counters["sequences"] = static_cast<double>(engine.stats().num_running);
  state.counters["waiting"] = static_cast<double>(engine.stats().num_waiting);
}
BENCHMARK(engine_step)
    ->Args({1, 1024, 0})
    ->Args({64, 1024, 0})
    ->Args({64, 1024, 10'000})
    ->Args({256, 1024, 0})
    ->Args({256, 1024, 10'000})
    ->Iterations(20'000)
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace quire
