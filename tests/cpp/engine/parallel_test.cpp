// Every family on 2 and 4 ranks of the CPU against one rank, and ranks that fail or hang.
#include <gtest/gtest.h>

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "device/open_device.h"
#include "engine/engine.h"
#include "engine/faulty_device.h"
#include "model/shard.h"
#include "model/tiny_families.h"

namespace quire {
namespace {

using test::RandomCheckpoint;
using test::Stored;

// A folder with a config.json, gone with its scope.
class ModelFolder {
 public:
  explicit ModelFolder(const Json& config) {
    static std::atomic<int> number{0};
    path_ = std::filesystem::temp_directory_path() / str_cat("quire_parallel_", ::getpid(), "_", number++);
    std::filesystem::create_directories(path_);
    std::ofstream(path_ / "config.json") << config.dump();
  }
  ~ModelFolder() { std::filesystem::remove_all(path_); }
  ModelFolder(const ModelFolder&) = delete;
  ModelFolder& operator=(const ModelFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

struct Family {
  std::string name;
  Json config;
};

// Those of tiny_families.h with 8 heads, so that 2 and 4 ranks can share them; widths stay odd.
std::vector<Family> families() {
  std::vector<Family> all;
  for (const test::TinyFamily& tiny : test::tiny_families()) {
    Json config = tiny.config;
    const bool is_gpt2 = tiny.name == "gpt2";
    config[is_gpt2 ? "n_head" : "num_attention_heads"] = 8;
    if (is_gpt2) config["n_embd"] = 72;
    if (tiny.name == "opt_projected") config["hidden_size"] = 72;
    all.push_back({tiny.name, config});
    if (tiny.name != "llama" && tiny.name != "phi3") continue;
    for (const int kv_heads : {1, 4, 8}) {
      config["num_key_value_heads"] = kv_heads;
      all.push_back({str_cat(tiny.name, "_kv", kv_heads), config});
    }
  }
  const Json opt = Json::parse(R"({"architectures": ["OPTForCausalLM"], "vocab_size": 301, "hidden_size": 72,
    "ffn_dim": 91, "num_attention_heads": 8, "num_hidden_layers": 2, "max_position_embeddings": 64,
    "word_embed_proj_dim": 72, "do_layer_norm_before": true, "activation_function": "relu"})");
  all.push_back({"opt", opt});
  return all;
}

EngineOptions options_of(int32_t num_ranks, const std::string& dtype) {
  return {.dtype = dtype,
          .device = "cpu",
          .max_model_len = 48,
          .max_num_seqs = 8,
          .max_num_batched_tokens = 40,
          .num_threads = 2,
          .tensor_parallel_size = num_ranks};
}

std::unique_ptr<Engine> make_engine(const ModelFolder& folder, const EngineOptions& options,
                                    const Checkpoint* checkpoint) {
  std::vector<std::unique_ptr<Device>> devices = make_devices(options);
  EngineConfig config = resolve_engine_config(folder.path(), options, *devices.front());
  return std::make_unique<Engine>(std::move(config), std::move(devices), checkpoint);
}

struct Result {
  std::vector<int32_t> token_ids;
  std::vector<float> logprobs;
  bool operator==(const Result&) const = default;
};

// Prompts of several lengths together, longer than a step, so that chunks and decodes share steps.
std::vector<Result> generate(Engine& engine) {
  std::vector<Result> results(4);
  for (size_t i = 0; i < results.size(); ++i) {
    std::vector<int32_t> prompt;
    for (size_t j = 0; j < 3 + 7 * i; ++j) prompt.push_back(static_cast<int32_t>((j * 37 + i * 101) % 300));
    const SamplingParams params = {.temperature = 0.0f, .ignore_eos = true, .max_tokens = 12, .logprobs = 0};
    engine.submit(
        prompt, params,
        [&results, i](const Delta& delta) {
          if (delta.finished == nullptr) return;
          const Completion& completion = delta.finished->completions.front();
          results[i] = {completion.token_ids, completion.logprobs.logprobs};
        },
        Notify::finished);
  }
  while (engine.step()) {
  }
  return results;
}

std::vector<Result> generate(const Family& family, const EngineOptions& options) {
  const ModelFolder folder(family.config);
  const ArchSpec arch = arch_registry().build(family.config);
  const RandomCheckpoint checkpoint(arch, Stored::f32);
  return generate(*make_engine(folder, options, &checkpoint));
}

class ParallelFamilies : public ::testing::TestWithParam<Family> {};

TEST_P(ParallelFamilies, GreedyTokensOfOneRank) {
  const std::vector<Result> one = generate(GetParam(), options_of(1, "float32"));
  for (const int32_t num_ranks : {2, 4}) {
    const std::vector<Result> several = generate(GetParam(), options_of(num_ranks, "float32"));
    for (size_t i = 0; i < one.size(); ++i) {
      ASSERT_EQ(one[i].token_ids.size(), 12u);
      EXPECT_EQ(one[i].token_ids, several[i].token_ids) << num_ranks << " ranks";
      for (size_t j = 0; j < one[i].logprobs.size(); ++j) {
        EXPECT_NEAR(one[i].logprobs[j], several[i].logprobs[j], 1e-3) << num_ranks << " ranks";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, ParallelFamilies, ::testing::ValuesIn(families()),
                         [](const auto& info) { return info.param.name; });

TEST(Parallel, TheSameBitsEveryTime) {
  const Family family = families().front();
  for (const int32_t num_ranks : {2, 4}) {
    const std::vector<Result> first = generate(family, options_of(num_ranks, "bfloat16"));
    for (const int32_t num_threads : {1, 3, 4}) {
      EngineOptions options = options_of(num_ranks, "bfloat16");
      options.num_threads = num_threads;
      EXPECT_EQ(first, generate(family, options)) << num_ranks << " ranks, " << num_threads << " threads";
    }
  }
}

// Numbers of a shard are those of the whole model's, so dummy weights are the same model.
TEST(Parallel, DummyWeightsAreThoseOfOneRank) {
  for (const Family& family : families()) {
    const ModelFolder folder(family.config);
    EngineOptions options = options_of(1, "float32");
    options.load_format = "dummy";
    const std::vector<Result> one = generate(*make_engine(folder, options, nullptr));
    options.tensor_parallel_size = 2;
    const std::vector<Result> two = generate(*make_engine(folder, options, nullptr));
    for (size_t i = 0; i < one.size(); ++i) {
      for (size_t j = 0; j < one[i].logprobs.size(); ++j) {
        EXPECT_NEAR(one[i].logprobs[j], two[i].logprobs[j], 1e-5) << family.name;
      }
    }
  }
}

// Scales are a rank's own, so the numbers are not those of one rank, but the model is.
TEST(Parallel, Int8Weights) {
  for (const Family& family : families()) {
    EngineOptions options = options_of(1, "float32");
    options.quantization = "int8";
    const std::vector<Result> one = generate(family, options);
    options.tensor_parallel_size = 2;
    const std::vector<Result> two = generate(family, options);
    for (size_t i = 0; i < one.size(); ++i) {
      EXPECT_NEAR(one[i].logprobs.front(), two[i].logprobs.front(), 0.25) << family.name;
    }
  }
}

TEST(Parallel, BlocksAndMemoryOfRanks) {
  const Family family = families().front();  // 8 heads, 2 KV heads
  const ModelFolder folder(family.config);
  const auto plan = [&](int32_t num_ranks) {
    const EngineOptions options = options_of(num_ranks, "float32");
    const std::unique_ptr<Device> device = make_device(options);
    return resolve_engine_config(folder.path(), options, *device);
  };
  const EngineConfig one = plan(1), two = plan(2), four = plan(4);
  EXPECT_TRUE(one.memory_of_ranks.empty());
  ASSERT_EQ(two.memory_of_ranks.size(), 2u);
  ASSERT_EQ(four.memory_of_ranks.size(), 4u);
  EXPECT_EQ(2 * two.memory.kv_block_bytes, one.memory.kv_block_bytes);
  EXPECT_EQ(2 * four.memory.kv_block_bytes, one.memory.kv_block_bytes);  // two ranks hold the same KV head
  EXPECT_EQ(two.memory.num_blocks, one.memory.num_blocks);
  int64_t weights = 0;
  for (const MemoryPlan& rank : two.memory_of_ranks) {
    EXPECT_LT(rank.weight_bytes, one.memory.weight_bytes);
    weights += rank.weight_bytes;
  }
  EXPECT_GE(weights, one.memory.weight_bytes);  // norms are there twice
  const std::unique_ptr<Device> device = make_device(options_of(2, "float32"));
  const ModelInfo info = describe(two, *device);
  EXPECT_EQ(info.weight_bytes, weights);
  EXPECT_EQ(info.kv_cache_bytes, one.memory.kv_bytes());
  ASSERT_EQ(info.ranks.size(), 2u);
  EXPECT_EQ(info.ranks[1].kv_cache_bytes * 2, info.kv_cache_bytes);
}

// ------------------------------------------------------------------------------------------------------ refusals

template <typename Error>
void expect_refused(const Json& config, const EngineOptions& options, const std::string& message) {
  const ModelFolder folder(config);
  const std::unique_ptr<Device> device = make_host_device({.num_threads = 1});
  try {
    resolve_engine_config(folder.path(), options, *device);
    FAIL() << "expected: " << message;
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
  }
}

TEST(Parallel, WhatCannotBeSharedOutIsRefused) {
  Json config = families().front().config;
  expect_refused<InvalidArgument>(config, options_of(3, "float32"),
                                  "Total number of attention heads (8) must be divisible by tensor parallel size (3).");
  expect_refused<InvalidArgument>(config, options_of(9, "float32"), "tensor_parallel_size must be from 1 to 8, got 9");
  config["num_attention_heads"] = 12;
  config["num_key_value_heads"] = 6;
  expect_refused<InvalidArgument>(config, options_of(4, "float32"), "cannot share out 6 key/value heads");
  EngineOptions options = options_of(2, "float32");
  options.collective_timeout = 0.0;
  expect_refused<InvalidArgument>(config, options, "collective_timeout must be positive, got 0");
}

// ---------------------------------------------------------------------------------------------------------- drafts

// Another model of the same vocabulary, with 3 heads, which no 2 ranks could share.
Json draft_config() {
  Json config = families().front().config;
  config["num_attention_heads"] = 3;
  config["num_key_value_heads"] = 3;
  return config;
}

EngineOptions with_drafts(EngineOptions options, const ModelFolder& draft) {
  options.speculative_method = "draft_model";
  options.draft_model = draft.path().string();
  options.num_speculative_tokens = 3;
  return options;
}

// `faults`: of the first rank's device.
std::unique_ptr<Engine> engine_with_drafts(const ModelFolder& folder, const ModelFolder& draft,
                                           const EngineOptions& options, const Json& draft_json,
                                           test::Faults* faults = nullptr) {
  std::vector<std::unique_ptr<Device>> devices = make_devices(options);
  EngineConfig config = resolve_engine_config(folder.path(), with_drafts(options, draft), *devices.front());
  const RandomCheckpoint checkpoint(config.model.arch, Stored::f32);
  const RandomCheckpoint draft_checkpoint(arch_registry().build(draft_json), Stored::f32);
  if (faults != nullptr) devices[0] = std::make_unique<test::FaultyDevice>(std::move(devices[0]), *faults);
  return std::make_unique<Engine>(std::move(config), std::move(devices), &checkpoint, &draft_checkpoint);
}

TEST(ParallelDrafts, TokensWithoutThemBitForBit) {
  const Family family = families().front();
  const ModelFolder folder(family.config);
  for (const Json& draft_json : {family.config, draft_config()}) {
    const ModelFolder draft(draft_json);
    for (const int32_t num_ranks : {1, 2, 4}) {
      const EngineOptions options = options_of(num_ranks, "float32");
      const std::unique_ptr<Engine> engine = engine_with_drafts(folder, draft, options, draft_json);
      EXPECT_EQ(generate(*engine), generate(family, options)) << num_ranks << " ranks";
      const Stats stats = engine->stats();
      EXPECT_GT(stats.num_draft_tokens, 0);
      // The model itself guesses right; sums of ranks may decide otherwise where candidates are close.
      EXPECT_TRUE(draft_json != family.config || stats.num_accepted_tokens > stats.num_draft_tokens / 2);
    }
  }
}

TEST(ParallelDrafts, TheFirstRankAloneHasTheModel) {
  const ModelFolder folder(families().front().config), draft(draft_config());
  const auto plan = [&](int32_t num_ranks) {
    const EngineOptions options = with_drafts(options_of(num_ranks, "float32"), draft);
    const std::unique_ptr<Device> device = make_device(options);
    return resolve_engine_config(folder.path(), options, *device);
  };
  const EngineConfig one = plan(1), two = plan(2);
  ASSERT_EQ(two.memory_of_ranks.size(), 2u);
  EXPECT_EQ(two.memory_of_ranks[0].draft.weight_bytes, one.memory.draft.weight_bytes);
  EXPECT_GT(one.memory.draft.weight_bytes, 0);
  EXPECT_EQ(two.memory_of_ranks[1].draft.weight_bytes, 0);
  EXPECT_EQ(two.memory_of_ranks[1].draft.kv_block_bytes, 0);
  EXPECT_EQ(two.memory_of_ranks[1].num_blocks, two.memory_of_ranks[0].num_blocks);
  EXPECT_FALSE(config_of_rank(two, 1).speculation.has_draft_model());
  EXPECT_EQ(config_of_rank(two, 1).scheduler.num_speculative_tokens, 3);
}

TEST(ParallelDrafts, GuessesThatFailAreNamedAndTheEngineGoesOn) {
  const Family family = families().front();
  const ModelFolder folder(family.config), draft(draft_config());
  const EngineOptions options = options_of(2, "float32");
  test::Faults faults;
  const std::unique_ptr<Engine> engine = engine_with_drafts(folder, draft, options, draft_config(), &faults);
  faults.fail_attention_after = 1;
  engine->submit({1, 2, 3}, {.temperature = 0.0f, .max_tokens = 4}, {}, Notify::finished);
  try {
    while (engine->step()) {
    }
    FAIL() << "no error";
  } catch (const DeviceError& error) {
    EXPECT_STREQ(error.what(), "rank 0 of 2 failed in guess: a planted fault");
  }
  while (engine->step()) {
  }
  EXPECT_EQ(generate(*engine), generate(family, options));
}

// ------------------------------------------------------------------------------------------------------ failures

// An engine of two ranks whose second device does what `faults` says.
std::unique_ptr<Engine> engine_with_faults(const ModelFolder& folder, const ArchSpec& arch, double timeout,
                                           test::Faults& faults) {
  EngineOptions options = options_of(2, "float32");
  options.collective_timeout = timeout;
  std::vector<std::unique_ptr<Device>> devices = make_devices(options);
  EngineConfig config = resolve_engine_config(folder.path(), options, *devices.front());
  devices[1] = std::make_unique<test::FaultyDevice>(std::move(devices[1]), faults);
  const RandomCheckpoint checkpoint(arch, Stored::f32);
  return std::make_unique<Engine>(std::move(config), std::move(devices), &checkpoint);
}

std::string error_of(Engine& engine) {
  engine.submit({1, 2, 3}, {.temperature = 0.0f, .max_tokens = 4}, {}, Notify::finished);
  try {
    while (engine.step()) {
    }
  } catch (const DeviceError& error) {
    return error.what();
  }
  return "no error";
}

TEST(ParallelFailures, ARankThatFailsIsNamedAndTheEngineGoesOn) {
  const Family family = families().front();
  const ModelFolder folder(family.config);
  const ArchSpec arch = arch_registry().build(family.config);
  test::Faults faults;
  const std::unique_ptr<Engine> engine = engine_with_faults(folder, arch, 60.0, faults);
  const std::vector<Result> before = generate(*engine);
  faults.fail_attention_after = 2;
  EXPECT_EQ(error_of(*engine), "rank 1 of 2 failed in run: a planted fault");
  // Nothing is lost: the step is done again.
  while (engine->step()) {
  }
  EXPECT_EQ(generate(*engine), before);
}

TEST(ParallelFailures, ARankThatHangsIsNamedWithinTheTimeLimit) {
  const Family family = families().front();
  const ModelFolder folder(family.config);
  const ArchSpec arch = arch_registry().build(family.config);
  test::Faults faults;
  const auto start = std::chrono::steady_clock::now();
  {
    const std::unique_ptr<Engine> engine = engine_with_faults(folder, arch, 0.3, faults);
    faults.hang_attention_after = 2;
    EXPECT_NE(error_of(*engine).find("rank 1 of 2 did not come back from run within the time limit of 0.3 s"),
              std::string::npos);
    // It can do no more work, and says so at once.
    EXPECT_THROW(engine->step(), DeviceError);
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));  // that it returned at all
  // The rank comes to itself: its thread ends, and with it its device and memory.
  EXPECT_EQ(faults.num_devices.load(), 1);
  faults.release();
  while (faults.num_devices.load() != 0) std::this_thread::yield();
}

TEST(ParallelFailures, NothingIsLeftBehind) {
  const Family family = families().front();
  const ModelFolder folder(family.config);
  const ArchSpec arch = arch_registry().build(family.config);
  test::Faults faults;
  {
    const std::unique_ptr<Engine> engine = engine_with_faults(folder, arch, 60.0, faults);
    faults.fail_attention_after = 1;
    EXPECT_NE(error_of(*engine), "no error");
    EXPECT_EQ(faults.num_devices.load(), 1);
  }
  EXPECT_EQ(faults.num_devices.load(), 0);
}

TEST(ParallelFailures, ARankThatCannotBeLoaded) {
  const Family family = families().front();
  const ModelFolder folder(family.config);
  const ArchSpec arch = arch_registry().build(family.config);
  test::Faults faults;
  faults.fail_pack = true;
  try {
    engine_with_faults(folder, arch, 60.0, faults);
    FAIL() << "it was loaded";
  } catch (const DeviceError& error) {
    EXPECT_STREQ(error.what(), "rank 1 of 2 failed in load: a planted fault");
  }
  EXPECT_EQ(faults.num_devices.load(), 0);
}

}  // namespace
}  // namespace quire
