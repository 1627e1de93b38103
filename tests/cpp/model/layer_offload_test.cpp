// Layers in host memory: which ones, what the device still holds, and that a forward pass cannot tell the difference,
// step by step and in a captured graph, whichever of the two streams runs ahead.
#include "model/layer_offload.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/check.h"
#include "model/decoder.h"
#include "model/late_device.h"
#include "model/rope_table.h"
#include "model/tiny_families.h"
#include "model/weight_loader.h"

namespace quire {
namespace {

using test::LateDevice;
using test::Prefer;
using test::RandomCheckpoint;
using test::Stored;

constexpr int32_t kLayers = 7;
constexpr int64_t kPositions = 64;

ArchSpec deep(const std::string& name) {
  for (const test::TinyFamily& family : test::tiny_families()) {
    if (family.name != name) continue;
    Json config = family.config;
    config[config.contains("n_layer") ? "n_layer" : "num_hidden_layers"] = kLayers;
    return arch_registry().build(config);
  }
  throw InvalidArgument(name);
}

const KernelTable& cpu_table() {
  static const auto device = make_host_device({.num_threads = 1});
  return device->kernels();
}

OffloadPlan plan_layers(const ArchSpec& arch, int64_t num_layers) {
  const auto layer = static_cast<int64_t>(layer_weight_bytes(arch, DType::bf16, cpu_table())[0]);
  return plan_offload(arch, DType::bf16, cpu_table(), num_layers * layer);
}

TEST(PlanOffload, WholeLayersSpreadOverTheDepth) {
  const ArchSpec arch = deep("llama");
  const std::vector<size_t> sizes = layer_weight_bytes(arch, DType::bf16, cpu_table());
  const auto layer = static_cast<int64_t>(sizes[0]);
  const auto layers = [&](int64_t num_bytes) { return plan_offload(arch, DType::bf16, cpu_table(), num_bytes).layers; };
  using Layers = std::vector<int32_t>;
  EXPECT_EQ(layers(0), Layers{});
  EXPECT_EQ(layers(-1), Layers{});
  EXPECT_EQ(layers(1), (Layers{6}));
  EXPECT_EQ(layers(layer), (Layers{6}));
  EXPECT_EQ(layers(layer + 1), (Layers{2, 6}));
  EXPECT_EQ(layers(3 * layer), (Layers{1, 3, 6}));
  EXPECT_EQ(layers(7 * layer), (Layers{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(layers(int64_t{1} << 60), (Layers{0, 1, 2, 3, 4, 5, 6})) << "more than there is: all";
}

TEST(PlanOffload, TheDeviceHoldsTheOtherLayersAndTwoSlots) {
  const ArchSpec arch = deep("llama");
  const size_t layer = layer_weight_bytes(arch, DType::bf16, cpu_table())[0];
  Weights weights;
  const size_t all = place_weights(arch, DType::bf16, cpu_table(), nullptr, weights);
  for (const int64_t count : {1, 2, 3, 5, 7}) {
    const OffloadPlan plan = plan_layers(arch, count);
    const auto num_slots = static_cast<size_t>(std::min<int64_t>(count, 2));
    EXPECT_EQ(plan.host_bytes(), static_cast<size_t>(count) * layer);
    EXPECT_EQ(plan.total_slot_bytes(), num_slots * layer);
    EXPECT_EQ(place_weights(arch, DType::bf16, cpu_table(), nullptr, weights, plan),
              all - (static_cast<size_t>(count) - num_slots) * layer);
  }
}

// A model on a device: weights, a cache of 8 pages, one batch, and what a step needs.
class Model {
 public:
  Model(const ArchSpec& arch, Device& device, const OffloadPlan& plan, const Checkpoint* checkpoint)
      : arch_(arch), device_(device) {
    const size_t weight_bytes = place_weights(arch, kDType, device.kernels(), nullptr, weights_, plan);
    weight_region_ = device.allocate(RegionTag::weights, weight_bytes);
    place_weights(arch, kDType, device.kernels(), weight_region_->data(), weights_, plan);
    if (!plan.empty()) offloaded_ = std::make_unique<OffloadedLayers>(device, plan, weight_region_->data());
    const LoadOptions options = {.staging = {.slot_bytes = 9000, .num_slots = 2, .num_threads = 1},
                                 .offload = offloaded_.get()};
    if (checkpoint != nullptr) {
      load_weights(arch, *checkpoint, device, weights_, options);
    } else {
      load_dummy_weights(arch, device, weights_, options);
    }
    const auto kv_bytes = static_cast<size_t>(kNumBlocks * kv_block_bytes(arch, kDType, kBlockSize));
    kv_region_ = device.allocate(RegionTag::kv_cache, kv_bytes);
    cache_ = place_kv_cache(arch, kDType, kBlockSize, kNumBlocks, kv_region_->data());
    place_workspace();
    decoder_ = std::make_unique<Decoder>(arch, kDType, weights_, rope_, 1);
    decoder_->set_layer_source(offloaded_.get());
    Arena measure;
    step(Ops(device.kernels(), {}, measure));
    arena_region_ = device.allocate(RegionTag::workspace, measure.high_water_bytes());
    arena_.bind(arena_region_->data(), measure.high_water_bytes());
  }

  // Puts a step on the stream; the logits of all tokens are what it leaves at the end of the arena's use.
  void step() { step(Ops(device_.kernels(), device_.stream(), arena_)); }

  std::vector<float> logits() {
    std::vector<float> values(static_cast<size_t>(kNumTokens * arch_.vocab_size));
    device_.copy_to_host(values.data(), logits_.data, values.size() * sizeof(float));
    return values;
  }

  // What nobody may rely on between two steps.
  void spoil_slots() {
    if (offloaded_ == nullptr) return;
    device_.fill_async(weight_region_->data(), std::byte{0xff}, offloaded_->plan().total_slot_bytes(),
                       device_.stream());
  }

  size_t weight_bytes() const { return weight_region_->num_bytes(); }

 private:
  static constexpr DType kDType = DType::bf16;
  static constexpr int32_t kBlockSize = 16;
  static constexpr int64_t kNumBlocks = 4, kNumTokens = 25;

  void step(const Ops& ops) {
    const Arena::Scope scope(ops.arena());
    const Tensor hidden = decoder_->forward(batch_, cache_, ops);
    logits_ = decoder_->logits(hidden, batch_.sample_token_rows, kNumTokens, ops);
  }

  // Rope tables, and two sequences of 21 and 4 tokens.
  void place_workspace() {
    std::vector<std::vector<float>> tables;
    for (const LayerSpec& layer : arch_.layers) {
      tables.push_back(layer.attn.rope.rotary_dim > 0 ? rope_cos_sin(layer.attn.rope, kPositions, kPositions)
                                                      : std::vector<float>{});
    }
    std::vector<int32_t> ids, positions, slots, rows;
    for (int32_t i = 0; i < kNumTokens; ++i) {
      const int32_t position = i < 21 ? i : i - 21;
      ids.push_back(3 + i * 29 % 290);
      positions.push_back(position);
      slots.push_back(i < 21 ? position : 2 * kBlockSize + position);
      rows.push_back(i);
    }
    workspace_ = device_.allocate(RegionTag::workspace, size_t{1} << 20);
    for (const std::vector<float>& table : tables) rope_.layers.push_back(table.empty() ? nullptr : upload(table));
    batch_ = {.num_tokens = kNumTokens,
              .num_seqs = 2,
              .num_samples = kNumTokens,
              .max_kv_len = 21,
              .token_ids = upload(ids),
              .positions = upload(positions),
              .slot_mapping = upload(slots),
              .query_start = upload(std::vector<int32_t>{0, 21, kNumTokens}),
              .kv_lens = upload(std::vector<int32_t>{21, 4}),
              .block_tables = upload(std::vector<int32_t>{0, 1, 2, 3}),
              .block_table_stride = 2,
              .sample_token_rows = upload(rows)};
  }

  template <typename T>
  const T* upload(const std::vector<T>& values) {
    std::byte* place = workspace_->data() + workspace_used_;
    workspace_used_ += (values.size() * sizeof(T) + 63) / 64 * 64;
    QUIRE_CHECK(workspace_used_ <= workspace_->num_bytes());
    device_.copy_to_device(place, values.data(), values.size() * sizeof(T));
    return reinterpret_cast<const T*>(place);
  }

  const ArchSpec& arch_;
  Device& device_;
  std::unique_ptr<Region> weight_region_, kv_region_, workspace_, arena_region_;
  size_t workspace_used_ = 0;
  Weights weights_;
  std::unique_ptr<OffloadedLayers> offloaded_;
  KvCache cache_;
  RopeTables rope_;
  DeviceBatch batch_;
  Arena arena_;
  std::unique_ptr<Decoder> decoder_;
  Tensor logits_;
};

class Offload : public testing::TestWithParam<std::string> {
 protected:
  std::vector<float> expected(bool dummy = false) {
    const auto host = make_host_device({.num_threads = 1});
    const RandomCheckpoint checkpoint(arch_, Stored::bf16);
    Model model(arch_, *host, {}, dummy ? nullptr : &checkpoint);
    model.step();
    return model.logits();
  }
  ArchSpec arch_ = deep(GetParam());
};

constexpr Prefer kOrders[] = {Prefer::compute, Prefer::copies, Prefer::random};

TEST_P(Offload, AStepHasTheSameBits) {
  const std::vector<float> want = expected();
  for (const int64_t count : {0, 1, 2, 3, 4, 7}) {
    for (const Prefer prefer : kOrders) {
      SCOPED_TRACE(testing::Message() << count << " layers, prefer " << static_cast<int>(prefer));
      LateDevice device(prefer);
      const RandomCheckpoint checkpoint(arch_, Stored::bf16);
      Model model(arch_, device, plan_layers(arch_, count), &checkpoint);
      for (int step = 0; step < 3; ++step) {
        model.step();
        EXPECT_TRUE(model.logits() == want) << "step " << step;
      }
      for (int step = 0; step < 2; ++step) model.step();  // two steps in flight
      EXPECT_TRUE(model.logits() == want);
    }
  }
}

TEST_P(Offload, AGraphCanBeReplayed) {
  const std::vector<float> want = expected();
  for (const int64_t count : {2, 3, 7}) {
    for (const Prefer prefer : kOrders) {
      SCOPED_TRACE(testing::Message() << count << " layers, prefer " << static_cast<int>(prefer));
      LateDevice device(prefer);
      const RandomCheckpoint checkpoint(arch_, Stored::bf16);
      Model model(arch_, device, plan_layers(arch_, count), &checkpoint);
      model.step();
      const std::unique_ptr<Graph> graph = device.capture([&] { model.step(); });
      for (int replay = 0; replay < 3; ++replay) {
        model.spoil_slots();
        graph->launch();
        if (replay == 1) graph->launch();
        EXPECT_TRUE(model.logits() == want) << "replay " << replay;
      }
      model.step();  // and one that is not captured again
      EXPECT_TRUE(model.logits() == want);
    }
  }
}

TEST_P(Offload, DummyWeights) {
  const std::vector<float> want = expected(true);
  LateDevice device(Prefer::random);
  Model model(arch_, device, plan_layers(arch_, 5), nullptr);
  model.step();
  EXPECT_TRUE(model.logits() == want);
}

INSTANTIATE_TEST_SUITE_P(, Offload, testing::Values("llama_biases_tied", "gemma2", "gpt2"),
                         [](const auto& instance) { return instance.param; });

}  // namespace
}  // namespace quire
