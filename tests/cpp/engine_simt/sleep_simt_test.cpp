// Sleep on the CUDA device in emulation: device memory is given back to the driver, captured steps go on, weights that
// are loaded into a woken engine are those it computes with, and a lack of memory loses nothing.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/simt/cudart_emu/cudart_emu.h"
#include "engine/pooling_engine.h"
#include "engine_simt/demo_engine.h"

namespace quire {
namespace {

EngineOptions options_of(const char* dtype = "bfloat16") {
  return {.dtype = dtype, .max_model_len = 128, .max_num_seqs = 4, .max_num_batched_tokens = 64};
}

std::vector<Wish> wishes() {
  const SamplingParams greedy = {.temperature = 0.0f, .ignore_eos = true, .max_tokens = 4, .logprobs = 0};
  SamplingParams drawn = {.n = 2, .temperature = 0.8f, .seed = 11, .ignore_eos = true, .max_tokens = 3, .logprobs = 1};
  drawn.logit_bias = {{700, 3.0f}};
  return {{story_prompt(9), greedy}, {story_prompt(5), drawn}};
}

size_t device_bytes() { return cudart_emu::live().device_bytes; }

class SleepOnSimt : public testing::Test {
 protected:
  void SetUp() override { cudart_emu::reset(); }
  void TearDown() override { cudart_emu::reset(); }
};

// What stays: lists and answers of steps, whose pages are of 2 MiB each.
constexpr size_t kMostLeft = size_t{16} << 20;

TEST_F(SleepOnSimt, GivesDeviceMemoryBackAndKeepsGraphsAndBits) {
  for (const int32_t level : {1, 2}) {
    const auto engine = make_engine(options_of());
    const auto before = generate(*engine, wishes());
    const size_t num_graphs = engine->worker().num_graphs(), open = device_bytes();
    const MemoryPlan& plan = engine->config().memory;
    ASSERT_GT(num_graphs, 0u);
    engine->sleep(level, SleepMode::abort);
    const auto taken = static_cast<size_t>(plan.fixed_bytes() + plan.kv_bytes());
    EXPECT_LE(device_bytes() + taken, open) << "level " << level;
    EXPECT_LE(device_bytes(), kMostLeft) << "level " << level;
    EXPECT_TRUE(engine->wake_up());
    EXPECT_EQ(device_bytes(), open);
    EXPECT_EQ(engine->worker().num_graphs(), num_graphs);
    if (level == 2) continue;
    const double captured = engine->worker().capture_seconds();
    EXPECT_EQ(generate(*engine, wishes()), before);
    EXPECT_EQ(engine->worker().capture_seconds(), captured) << "nothing was captured again";
  }
}

TEST_F(SleepOnSimt, WakesUpInPartsWithTheSameBits) {
  const auto engine = make_engine(options_of());
  const auto before = generate(*engine, wishes());
  engine->sleep(1, SleepMode::abort);
  const size_t asleep = device_bytes();
  EXPECT_FALSE(engine->wake_up({"weights"}));
  const size_t with_weights = device_bytes();
  EXPECT_GE(with_weights, asleep + static_cast<size_t>(engine->config().memory.weight_bytes));
  EXPECT_LT(with_weights, asleep + static_cast<size_t>(engine->config().memory.weight_bytes) + (size_t{2} << 20));
  EXPECT_TRUE(engine->wake_up({"kv_cache"}));
  EXPECT_EQ(generate(*engine, wishes()), before);
}

// Steps are in flight, planned ahead; their rows are told everything again.
TEST_F(SleepOnSimt, KeptRequestsGoOnWithTheSameBits) {
  const auto expected = generate(*make_engine(options_of()), wishes());
  const auto engine = make_engine(options_of());
  for (const int num_steps : {1, 3}) {
    std::vector<std::vector<int32_t>> tokens(2);
    for (size_t i = 0; i < 2; ++i) {
      engine->submit(
          wishes()[i].prompt, wishes()[i].params,
          [&tokens, i](const Delta& delta) {
            if (delta.finished != nullptr) tokens[i] = delta.finished->completions[0].token_ids;
          },
          Notify::finished);
    }
    for (int s = 0; s < num_steps; ++s) ASSERT_TRUE(engine->step());
    engine->sleep(1, SleepMode::keep);
    EXPECT_FALSE(engine->step());
    engine->wake_up();
    while (engine->step()) {
    }
    for (size_t i = 0; i < 2; ++i) EXPECT_EQ(tokens[i], expected[i].token_ids[0]) << num_steps << " steps";
  }
}

// Their copies stay in host memory, where they were; level 2 drops those too, and captured copies with them.
TEST_F(SleepOnSimt, OffloadedLayersSleepToo) {
  EngineOptions options = options_of();
  options.cpu_offload_gb = 1.0;
  const auto engine = make_engine(options);
  const auto before = generate(*engine, wishes());
  const size_t num_graphs = engine->worker().num_graphs();
  const int64_t num_buffers = cudart_emu::live().host_buffers;
  const auto num_layers = static_cast<int64_t>(engine->config().memory.offload.layers.size());
  ASSERT_GT(num_layers, 0);
  engine->sleep(1, SleepMode::abort);
  EXPECT_LE(device_bytes(), kMostLeft);
  EXPECT_EQ(cudart_emu::live().host_buffers, num_buffers) << "the ring is gone, the layers are there";
  engine->wake_up();
  EXPECT_EQ(generate(*engine, wishes()), before);
  EXPECT_EQ(engine->worker().num_graphs(), num_graphs);
  engine->sleep(2, SleepMode::abort);
  EXPECT_EQ(cudart_emu::live().host_buffers, num_buffers - num_layers);
  EXPECT_EQ(engine->worker().num_graphs(), 0u);
  engine->wake_up();
  EXPECT_EQ(cudart_emu::live().host_buffers, num_buffers);
}

TEST_F(SleepOnSimt, DraftModelsSleepToo) {
  EngineOptions options = options_of();
  options.speculative_method = "draft_model";
  options.num_speculative_tokens = 2;
  options.draft_model = kDemo;
  const std::vector<Wish> wish = {wishes().front()};
  const auto engine = make_engine(options);
  const auto before = generate(*engine, wish);
  const int64_t num_accepted = engine->stats().num_accepted_tokens;
  ASSERT_GT(num_accepted, 0);
  engine->sleep(1, SleepMode::abort);
  EXPECT_LE(device_bytes(), kMostLeft);
  engine->wake_up();
  EXPECT_EQ(generate(*engine, wish), before);
  EXPECT_EQ(engine->stats().num_accepted_tokens, 2 * num_accepted);
}

// Somebody else has the memory meanwhile: the engine sleeps on, and what it kept is not lost.
TEST_F(SleepOnSimt, WithoutMemoryItSleepsOn) {
  const auto engine = make_engine(options_of());
  const auto before = generate(*engine, wishes());
  // Mappings of two regions or three; the copies need pinned buffers and events behind them.
  for (const int n : {1, 3, 4}) {
    engine->sleep(1, SleepMode::abort);
    const size_t asleep = device_bytes();
    cudart_emu::fail_allocation_after(n);
    EXPECT_THROW(engine->wake_up(), OutOfMemory) << "allocation " << n;
    ASSERT_FALSE(cudart_emu::faults_pending());
    EXPECT_TRUE(engine->is_sleeping());
    EXPECT_EQ(device_bytes(), asleep) << "allocation " << n;
    EXPECT_TRUE(engine->wake_up());
  }
  EXPECT_EQ(generate(*engine, wishes()), before);
}

// There is no room for a copy: nothing has gone.
TEST_F(SleepOnSimt, WithoutRoomForACopyNothingIsLost) {
  const auto engine = make_engine(options_of());
  const auto before = generate(*engine, wishes());
  const size_t open = device_bytes();
  cudart_emu::fail_allocation_after(1);
  EXPECT_THROW(engine->sleep(1, SleepMode::abort), OutOfMemory);
  EXPECT_EQ(device_bytes(), open);
  EXPECT_TRUE(engine->is_sleeping());  // what was under way has ended
  EXPECT_TRUE(engine->wake_up());
  EXPECT_EQ(generate(*engine, wishes()), before);
}

TEST_F(SleepOnSimt, PoolingModelsSleepToo) {
  const EngineOptions options = {.dtype = "bfloat16", .max_model_len = 64, .max_num_seqs = 6};
  std::unique_ptr<Device> device = device_of("cuda");
  PoolingConfig config = resolve_pooling_config(kDemo, options, {.pooling_type = "MEAN"}, *device);
  const std::unique_ptr<Checkpoint> checkpoint = open_safetensors(kDemo);
  PoolingEngine engine(std::move(config), std::move(device), checkpoint.get());
  const auto pooled = [&] {
    std::vector<float> data;
    engine.submit({.token_ids = story_prompt(20)}, {}, [&](PoolingOutput&& output) { data = std::move(output.data); });
    while (engine.step()) {
    }
    return data;
  };
  const std::vector<float> before = pooled();
  ASSERT_FALSE(before.empty());
  const size_t open = device_bytes();
  engine.sleep(1, SleepMode::abort);
  EXPECT_EQ(device_bytes(), 0u);
  EXPECT_FALSE(engine.wake_up({"kv_cache"}));
  EXPECT_TRUE(engine.wake_up({"weights"}));
  EXPECT_EQ(device_bytes(), open);
  EXPECT_EQ(pooled(), before);
}

// ---------------------------------------------------------------------------- weights loaded into what has woken up

// Tensors of the embedded model, its last norm doubled.
class OtherWeights {
 public:
  OtherWeights() : main_(open_safetensors(kDemo)) {
    std::vector<CheckpointTensor> tensors = main_->tensors();
    for (CheckpointTensor& tensor : tensors) {
      if (tensor.name != "model.norm.weight") continue;
      values_.resize(static_cast<size_t>(tensor.shape[0]));
      for (size_t i = 0; i < values_.size(); ++i) {
        values_[i] = tensor.dtype == DType::f32 ? 2.0f * static_cast<const float*>(tensor.data)[i]
                                                : 2.0f * bf16_to_float(static_cast<const uint16_t*>(tensor.data)[i]);
      }
      tensor.dtype = DType::f32;
      tensor.data = values_.data();
    }
    changed_ = checkpoint_in_memory(std::move(tensors));
  }
  const Checkpoint& original() const { return *main_; }
  const Checkpoint& changed() const {
    EXPECT_FALSE(values_.empty());
    return *changed_;
  }

 private:
  std::unique_ptr<Checkpoint> main_, changed_;
  std::vector<float> values_;
};

class LoadsIntoWokenWeights : public SleepOnSimt, public testing::WithParamInterface<const char*> {
 protected:
  void make_worker() {
    std::unique_ptr<Device> device = device_of(GetParam());
    EngineOptions options = options_of();
    options.device = GetParam();
    options.cpu_offload_gb = offload_gb_;
    config_ = resolve_engine_config(kDemo, options, *device);
    worker_ = std::make_unique<Worker>(config_, std::move(device));
  }
  std::vector<float> logits() {
    const int32_t block_size = config_.scheduler.block_size;
    Batch batch;
    batch.token_ids = story_prompt(2);
    batch.positions = batch.slot_mapping = {0, 1};
    batch.query_start = {0, 2};
    batch.kv_lens = {2};
    batch.block_tables = {0};
    batch.block_table_stride = 1;
    batch.sample_token_rows = {1};
    batch.sample_seqs = {0};
    EXPECT_GE(block_size, 2);
    worker_->upload(batch);
    worker_->forward();
    return worker_->all_logits();
  }

  double offload_gb_ = 0.0;
  OtherWeights weights_;
  EngineConfig config_;
  std::unique_ptr<Worker> worker_;
};

// The pattern of reinforcement learning: weights wake, others are loaded into them, the cache wakes.
TEST_P(LoadsIntoWokenWeights, InStagesWhateverWasDropped) {
  for (const double offload_gb : {0.0, 1.0}) {
    offload_gb_ = offload_gb;
    make_worker();
    worker_->load(&weights_.changed());
    const std::vector<float> changed = logits();
    make_worker();
    worker_->load(&weights_.original());
    const std::vector<float> original = logits();
    ASSERT_NE(changed, original);
    for (const bool keep : {true, false}) {
      worker_->sleep(true, true, keep);
      worker_->wake(true, false);
      EXPECT_EQ(worker_->has_weights(), keep);
      worker_->load(&weights_.changed());
      EXPECT_TRUE(worker_->has_weights());
      worker_->wake(false, true);
      EXPECT_EQ(logits(), changed) << "keep " << keep;
      worker_->sleep(true, true, false);
      worker_->wake(true, true);
      worker_->load(&weights_.original());
      EXPECT_EQ(logits(), original) << "keep " << keep;
    }
  }
}

// What was written over the weights is nowhere else, so sleep brings that back and not the checkpoint's.
TEST_P(LoadsIntoWokenWeights, ReplacedWeightsSurviveLevelOne) {
  make_worker();
  const std::shared_ptr<const Checkpoint> files = open_safetensors(kDemo);
  worker_->load(files.get());
  worker_->adopt_checkpoints(files, nullptr);
  const std::vector<float> original = logits();
  worker_->load(&weights_.changed());
  const std::vector<float> changed = logits();
  ASSERT_NE(changed, original);
  for (int i = 0; i < 2; ++i) {
    worker_->sleep(true, true, true);
    worker_->wake(true, true);
    EXPECT_EQ(logits(), changed);
    worker_->weights_replaced();
  }
  worker_->load(files.get());
  worker_->adopt_checkpoints(files, nullptr);
  worker_->sleep(true, true, true);
  worker_->wake(true, true);
  EXPECT_EQ(logits(), original);
}

INSTANTIATE_TEST_SUITE_P(, LoadsIntoWokenWeights, testing::Values("cpu", "cuda"));

}  // namespace
}  // namespace quire
