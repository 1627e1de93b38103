// Pooling models on ranks of the CPU: memory of each, ranks that fail or hang, and what is left behind.
#include <gtest/gtest.h>

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "device/open_device.h"
#include "engine/engine_config.h"
#include "engine/faulty_device.h"
#include "engine/pooling_engine.h"
#include "model/arch_registry.h"
#include "model/pooler.h"
#include "model/tiny_families.h"

namespace quire {
namespace {

const char* const kBert = R"({"architectures": ["BertForSequenceClassification"], "vocab_size": 301, "hidden_size": 72,
  "intermediate_size": 91, "num_attention_heads": 8, "num_hidden_layers": 2, "max_position_embeddings": 64,
  "type_vocab_size": 2, "hidden_act": "gelu", "id2label": {"0": "a", "1": "b", "2": "c"}})";
const PoolerOptions kClassify = {.task = "classify"};

// A classifier with random weights, in a folder of its own.
class RankedBert : public ::testing::Test {
 protected:
  void SetUp() override {
    const ::testing::TestInfo* const test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::temp_directory_path() / str_cat("quire_pooling_", ::getpid(), "_", test->name());
    std::filesystem::create_directories(folder_);
    std::ofstream(folder_ / "config.json") << kBert;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  static EngineOptions options_of(int32_t num_ranks, double timeout = 60.0) {
    return {.dtype = "float32",
            .device = "cpu",
            .max_num_seqs = 4,
            .max_num_batched_tokens = 64,
            .num_threads = 2,
            .tensor_parallel_size = num_ranks,
            .collective_timeout = timeout};
  }
  PoolingConfig config_of(const EngineOptions& options) const {
    const std::unique_ptr<Device> device = make_device(options);
    return resolve_pooling_config(folder_, options, kClassify, *device);
  }
  // `faults`: of the second rank's device.
  std::unique_ptr<PoolingEngine> engine_of(const EngineOptions& options, test::Faults* faults = nullptr) const {
    std::vector<std::unique_ptr<Device>> devices = make_devices(options);
    PoolingConfig config = config_of(options);
    if (faults != nullptr) devices[1] = std::make_unique<test::FaultyDevice>(std::move(devices[1]), *faults);
    const test::RandomCheckpoint checkpoint(config.model.arch, test::Stored::f32);
    return std::make_unique<PoolingEngine>(std::move(config), std::move(devices), &checkpoint);
  }
  static std::vector<std::vector<float>> run(PoolingEngine& engine) {
    std::vector<std::vector<float>> answers(5);
    for (size_t i = 0; i < answers.size(); ++i) {
      PoolingInput text;
      for (size_t j = 0; j < 1 + 13 * i; ++j) text.token_ids.push_back(static_cast<int32_t>((j * 37 + i * 101) % 300));
      engine.submit(std::move(text), {.use_activation = false},
                    [&answers, i](PoolingOutput&& output) { answers[i] = std::move(output.data); });
    }
    while (engine.step()) {
    }
    return answers;
  }
  static std::string error_of(PoolingEngine& engine) {
    engine.submit({.token_ids = {1, 2, 3}}, {}, {});
    try {
      while (engine.step()) {
      }
    } catch (const DeviceError& error) {
      return error.what();
    }
    return "no error";
  }

  std::filesystem::path folder_;
};

TEST_F(RankedBert, AnswersOfOneRank) {
  const std::vector<std::vector<float>> one = run(*engine_of(options_of(1)));
  for (const int32_t num_ranks : {2, 4, 8}) {
    const std::vector<std::vector<float>> several = run(*engine_of(options_of(num_ranks)));
    for (size_t i = 0; i < one.size(); ++i) {
      ASSERT_EQ(one[i].size(), 3u);
      ASSERT_EQ(several[i].size(), 3u);
      for (size_t c = 0; c < 3; ++c) EXPECT_NEAR(one[i][c], several[i][c], 2e-5) << num_ranks << " ranks";
    }
  }
}

TEST_F(RankedBert, MemoryOfRanks) {
  const PoolingConfig one = config_of(options_of(1)), two = config_of(options_of(2));
  EXPECT_TRUE(one.memory_of_ranks.empty());
  ASSERT_EQ(two.memory_of_ranks.size(), 2u);
  const auto& first = two.memory_of_ranks[0];
  const auto& second = two.memory_of_ranks[1];
  EXPECT_LT(first.weight_bytes, one.memory.weight_bytes);
  EXPECT_LT(second.weight_bytes, first.weight_bytes);  // has no head, and no biases of o and down
  EXPECT_GT(first.weight_bytes + second.weight_bytes, one.memory.weight_bytes);  // norms and positions are there twice
  const std::unique_ptr<Device> device = make_device(options_of(2));
  const ModelInfo info = describe(two, *device);
  EXPECT_EQ(info.weight_bytes, first.weight_bytes + second.weight_bytes);
  ASSERT_EQ(info.ranks.size(), 2u);
  EXPECT_EQ(info.ranks[1].workspace_bytes, second.workspace_bytes);
}

TEST_F(RankedBert, ARankThatFailsIsNamedAndTheEngineGoesOn) {
  test::Faults faults;
  const std::unique_ptr<PoolingEngine> engine = engine_of(options_of(2), &faults);
  const std::vector<std::vector<float>> before = run(*engine);
  faults.fail_attention_after = 2;
  EXPECT_EQ(error_of(*engine), "rank 1 of 2 failed in run: a planted fault");
  // Nothing is lost: the step is done again.
  EXPECT_EQ(engine->stats().num_waiting, 1);
  while (engine->step()) {
  }
  EXPECT_EQ(engine->stats().num_waiting, 0);
  EXPECT_EQ(run(*engine), before);
}

TEST_F(RankedBert, ARankThatHangsIsNamedWithinTheTimeLimit) {
  test::Faults faults;
  {
    const std::unique_ptr<PoolingEngine> engine = engine_of(options_of(2, 0.3), &faults);
    faults.hang_attention_after = 2;
    EXPECT_NE(error_of(*engine).find("rank 1 of 2 did not come back from run within the time limit of 0.3 s"),
              std::string::npos);
    // It can do no more work, and says so at once.
    EXPECT_THROW(engine->step(), DeviceError);
  }
  // The rank comes to itself: its thread ends, and with it its device and memory.
  EXPECT_EQ(faults.num_devices.load(), 1);
  faults.release();
  while (faults.num_devices.load() != 0) std::this_thread::yield();
}

TEST_F(RankedBert, ARankThatCannotBeLoaded) {
  test::Faults faults;
  faults.fail_pack = true;
  try {
    engine_of(options_of(2), &faults);
    FAIL() << "it was loaded";
  } catch (const DeviceError& error) {
    EXPECT_STREQ(error.what(), "rank 1 of 2 failed in load: a planted fault");
  }
  EXPECT_EQ(faults.num_devices.load(), 0);
}

TEST_F(RankedBert, WeightsOfNoRank) {
  const std::unique_ptr<PoolingEngine> engine = engine_of(options_of(2));
  EXPECT_THROW(engine->weights_of_rank(2), InvalidArgument);
  EXPECT_THROW(engine->read_weight_of_rank(-1, "classifier.weight"), InvalidArgument);
  EXPECT_THROW(engine->load_weights_of_ranks({{}}), InvalidArgument);
}

}  // namespace
}  // namespace quire
