// Pooling on the CUDA device in emulation: vectors close to the CPU's, and the same bits whatever the batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/simt/cudart_emu/cudart_emu.h"
#include "engine/pooling_engine.h"
#include "engine_simt/ranks.h"

namespace quire {
namespace {

std::unique_ptr<PoolingEngine> make_engine(const std::string& device_name, const std::string& dtype,
                                           const PoolerOptions& pooler) {
  const EngineOptions options = {
      .dtype = dtype, .device = device_name, .max_model_len = 64, .max_num_seqs = 6, .max_num_batched_tokens = 64};
  std::unique_ptr<Device> device = device_of(device_name);
  PoolingConfig config = resolve_pooling_config(kDemo, options, pooler, *device);
  const std::unique_ptr<Checkpoint> checkpoint = open_safetensors(kDemo);
  return std::make_unique<PoolingEngine>(std::move(config), std::move(device), checkpoint.get());
}

PoolingInput text_of(int32_t length, int32_t salt) { return {.token_ids = story_prompt(length, salt)}; }

std::vector<std::vector<float>> run(PoolingEngine& engine, const std::vector<PoolingInput>& texts) {
  std::vector<std::vector<float>> vectors(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    engine.submit(texts[i], {}, [&vectors, i](PoolingOutput&& output) { vectors[i] = std::move(output.data); });
  }
  while (engine.step()) {
  }
  return vectors;
}

class PoolingSimt : public ::testing::TestWithParam<const char*> {};

TEST_P(PoolingSimt, CloseToTheCpuAndTheSameBitsAlone) {
  const PoolerOptions pooler = {.pooling_type = GetParam()};
  const std::vector<PoolingInput> texts = {text_of(1, 1), text_of(17, 2), text_of(30, 3)};
  const auto gpu = make_engine("cuda", "float32", pooler), cpu = make_engine("cpu", "float32", pooler);
  const std::vector<std::vector<float>> got = run(*gpu, texts), want = run(*cpu, texts);
  for (size_t i = 0; i < texts.size(); ++i) {
    ASSERT_EQ(got[i].size(), want[i].size());
    ASSERT_FALSE(got[i].empty());
    for (size_t c = 0; c < got[i].size(); ++c) ASSERT_NEAR(got[i][c], want[i][c], 1e-4) << "text " << i;
  }
  EXPECT_EQ(run(*gpu, {texts[1]}).front(), got[1]);
}

// Ranks that share a GPU, and that have one each. The first one pools, in whatever way.
TEST(PoolingRanksOnSimt, CloseToOneRankAndTheSameBitsAlone) {
  const PoolerOptions pooler = {.pooling_type = "MEAN"};
  const std::vector<PoolingInput> texts = {text_of(1, 1), text_of(17, 2)};
  const std::vector<std::vector<float>> want = run(*make_engine("cpu", "float32", pooler), texts);
  cudart_emu::reset({.num_devices = 2});
  std::vector<std::vector<float>> first;
  for (const std::vector<int>& indices : {std::vector<int>{0, 0}, std::vector<int>{0, 1}}) {
    const EngineOptions options = {.dtype = "float32",
                                   .device = indices[1] == 0 ? "simt:0,0" : "simt:0,1",
                                   .max_model_len = 64,
                                   .max_num_seqs = 6,
                                   .max_num_batched_tokens = 64,
                                   .tensor_parallel_size = 2};
    Devices devices = devices_of(indices);
    PoolingConfig config = resolve_pooling_config(kDemo, options, pooler, *devices.front());
    const std::unique_ptr<Checkpoint> checkpoint = open_safetensors(kDemo);
    PoolingEngine engine(std::move(config), std::move(devices), checkpoint.get());
    const std::vector<std::vector<float>> got = run(engine, texts);
    for (size_t i = 0; i < texts.size(); ++i) {
      ASSERT_EQ(got[i].size(), want[i].size());
      ASSERT_FALSE(got[i].empty());
      for (size_t c = 0; c < got[i].size(); ++c) ASSERT_NEAR(got[i][c], want[i][c], 1e-4) << "text " << i;
    }
    EXPECT_EQ(run(engine, {texts[1]}).front(), got[1]);
    if (first.empty()) first = got;
    EXPECT_EQ(got, first);  // who has which GPU decides no bit
    engine.sleep(1, SleepMode::abort);
    engine.wake_up();
    EXPECT_EQ(run(engine, {texts[0]}).front(), got[0]);
  }
  cudart_emu::reset();
}

INSTANTIATE_TEST_SUITE_P(, PoolingSimt, testing::Values("LAST", "MEAN", "ALL"));

}  // namespace
}  // namespace quire
