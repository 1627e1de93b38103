// The host's side of loading onto a GPU: GB/s from a mapped checkpoint (in the page cache) into pinned slots.
//
// The device of this benchmark drops copies and launches, so what is left is what threads of the host do: page faults
// of the mapping and copies into slots. A load is as fast as the slower of this and the bus. Arguments: threads, MiB a
// slot.
#include <benchmark/benchmark.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <vector>

#include "base/json.h"
#include "model/arch_registry.h"
#include "model/weight_loader.h"
#include "model/weight_match.h"

namespace quire {
namespace {

class DoneEvent final : public Event {
 public:
  void record(Stream) override {}
  void wait() override {}
};

// Part of a buffer that outlives a load, so that its first touch is not measured.
class LentBuffer final : public HostBuffer {
 public:
  LentBuffer(std::byte* data, size_t num_bytes) : data_(data), num_bytes_(num_bytes) {}
  std::byte* data() const override { return data_; }
  size_t num_bytes() const override { return num_bytes_; }

 private:
  std::byte* data_;
  size_t num_bytes_;
};

class DroppingDevice final : public Device {
 public:
  DroppingDevice() : kernels_(host_->kernels()) {
    kernels_.pack_weight = [](const PackWeightParams&, Stream) {};
  }
  std::string name() const override { return "dropping"; }
  const KernelTable& kernels() const override { return kernels_; }
  Stream stream() const override { return host_->stream(); }
  int num_threads() const override { return 1; }
  DeviceMemory memory() const override { return host_->memory(); }
  bool is_asynchronous() const override { return true; }
  std::unique_ptr<Region> allocate(RegionTag tag, size_t n) override { return host_->allocate(tag, n); }
  std::unique_ptr<HostBuffer> allocate_host(size_t n) override {
    QUIRE_CHECK(lent_ + n <= pinned_.size(), "slots of more than ", pinned_.size(), " bytes");
    lent_ += n;
    return std::make_unique<LentBuffer>(pinned_.data() + lent_ - n, n);
  }
  void take_back() { lent_ = 0; }
  void copy_to_device(void*, const void*, size_t) override {}
  void copy_to_host(void*, const void*, size_t) override {}
  void copy_async(void*, const void*, size_t, Stream) override {}
  void fill_async(void*, std::byte, size_t, Stream) override {}
  std::unique_ptr<Event> make_event() override { return std::make_unique<DoneEvent>(); }
  void wait_for(Stream, const Event&) override {}
  std::unique_ptr<Graph> capture(const std::function<void()>&) override { return nullptr; }
  void synchronize() override {}

 private:
  std::unique_ptr<Device> host_ = make_host_device({.num_threads = 1});
  KernelTable kernels_;
  std::vector<std::byte> pinned_ = std::vector<std::byte>(size_t{256} << 20);
  size_t lent_ = 0;
};

// A checkpoint of 0.5 GB on disk: Llama's names, or GPT-2's with its transposed matrices.
class Folder {
 public:
  explicit Folder(const char* config) : arch(arch_registry().build(Json::parse(config))) {
    std::string name = (std::filesystem::temp_directory_path() / "quire_bench_XXXXXX").string();
    QUIRE_CHECK(mkdtemp(name.data()) != nullptr);
    path = name;
    Json header = Json::object();
    for (const auto& [tensor, entry] : bind_rules(arch)) {
      int64_t size = 2;
      for (const int64_t each : entry.shape) size *= each;
      header[tensor] = {{"dtype", "BF16"}, {"shape", entry.shape}, {"data_offsets", {num_bytes, num_bytes + size}}};
      num_bytes += size;
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    std::ofstream file(path / "model.safetensors", std::ios::binary);
    const uint64_t length = text.size();
    file.write(reinterpret_cast<const char*>(&length), sizeof(length));
    file << text;
    std::mt19937_64 random(1);
    std::vector<uint64_t> block(size_t{1} << 17);
    for (uint64_t& each : block) each = random();
    for (int64_t left = num_bytes; left > 0; left -= static_cast<int64_t>(block.size() * 8)) {
      file.write(reinterpret_cast<const char*>(block.data()), std::min<int64_t>(left, int64_t(block.size()) * 8));
    }
  }
  ~Folder() { std::filesystem::remove_all(path); }

  ArchSpec arch;
  std::filesystem::path path;
  int64_t num_bytes = 0;
};

void load(benchmark::State& state, const Folder& folder) {
  DroppingDevice device;
  Weights weights;
  place_weights(folder.arch, DType::bf16, device.kernels(), nullptr, weights);
  const LoadOptions options = {.staging = {.slot_bytes = static_cast<size_t>(state.range(1)) << 20,
                                           .num_threads = static_cast<int>(state.range(0))}};
  for (auto _ : state) {
    const std::unique_ptr<Checkpoint> checkpoint = open_safetensors(folder.path);
    load_weights(folder.arch, *checkpoint, device, weights, options);
    device.take_back();
  }
  state.counters["GB/s"] =
      benchmark::Counter(static_cast<double>(folder.num_bytes) * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

void fill_from_mapped_rows(benchmark::State& state) {
  static const Folder folder(R"({"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 4,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu"})");
  load(state, folder);
}

void fill_from_mapped_transposed(benchmark::State& state) {
  static const Folder folder(R"({"architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "n_embd": 1280,
    "n_head": 20, "n_layer": 8, "n_positions": 1024})");
  load(state, folder);
}

BENCHMARK(fill_from_mapped_rows)->ArgsProduct({{1, 2, 4, 8, 16}, {16}})->Args({2, 4})->Args({2, 64})->UseRealTime();
BENCHMARK(fill_from_mapped_transposed)->ArgsProduct({{1, 2, 16}, {16}})->UseRealTime();

}  // namespace
}  // namespace quire
