// Several ranks that share a model on the CPU: the same tokens as one rank gives, the same bits every time.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "quire/quire.h"

namespace quire {
namespace {

const std::string kDemo = QUIRE_DEMO_MODEL_DIR;

std::vector<int32_t> prompt_of(int32_t length, int32_t salt) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < length; ++i) ids.push_back(300 + (i * 37 + salt * 101) % 1500);
  return ids;
}

EngineOptions options_of(int32_t num_ranks, const char* dtype = "float32") {
  return {.dtype = dtype, .device = "cpu", .max_model_len = 256, .num_threads = 2, .tensor_parallel_size = num_ranks};
}

std::vector<RequestOutput> run(const EngineOptions& options, const SamplingParams& params) {
  std::vector<std::vector<int32_t>> prompts;
  for (int32_t i = 0; i < 5; ++i) prompts.push_back(prompt_of(3 + i * 17, i));
  return LLM(kDemo, options).generate(prompts, params);
}

const SamplingParams kGreedy = {
    .temperature = 0.0f, .ignore_eos = true, .max_tokens = 24, .logprobs = 3, .prompt_logprobs = 1};

class ParallelOnCpu : public ::testing::TestWithParam<int32_t> {};

TEST_P(ParallelOnCpu, GreedyTokensOfOneRank) {
  const std::vector<RequestOutput> one = run(options_of(1), kGreedy), several = run(options_of(GetParam()), kGreedy);
  for (size_t i = 0; i < one.size(); ++i) {
    const Completion &a = one[i].completions.front(), &b = several[i].completions.front();
    EXPECT_EQ(a.token_ids, b.token_ids);
    ASSERT_EQ(a.logprobs.logprobs.size(), b.logprobs.logprobs.size());
    for (size_t j = 0; j < a.logprobs.logprobs.size(); ++j) {
      EXPECT_NEAR(a.logprobs.logprobs[j], b.logprobs.logprobs[j], 1e-4);
    }
    ASSERT_EQ(one[i].prompt_logprobs.logprobs.size(), several[i].prompt_logprobs.logprobs.size());
    for (size_t j = 0; j < one[i].prompt_logprobs.logprobs.size(); ++j) {
      EXPECT_NEAR(one[i].prompt_logprobs.logprobs[j], several[i].prompt_logprobs.logprobs[j], 1e-4);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, ParallelOnCpu, ::testing::Values(2));

}  // namespace
}  // namespace quire
