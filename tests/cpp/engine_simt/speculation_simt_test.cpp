// Speculative decoding on the CUDA device, emulated: flat batches with several rows of logits a sequence give the bits
// that decoding from rows gives, whoever guesses; drafts go from pass to pass on the device.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "cuda/simt/cudart_emu/cudart_emu.h"
#include "engine_simt/ranks.h"

namespace quire {
namespace {

std::vector<int32_t> looping_prompt(int32_t length, int32_t salt) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < length; ++i) ids.push_back(300 + salt * 40 + i % 5);
  return ids;
}

// Rows with lists and without, with a mask, with code of the caller.
class EvenTokens : public TokenConstraint {
 public:
  std::shared_ptr<void> start() override { return std::make_shared<int>(0); }
  void fill_masks(std::span<MaskRow> rows) override {
    for (MaskRow& row : rows) std::ranges::fill(row.mask, 0x55555555u);
  }
  void commit(std::span<CommittedToken>) override {}
};

std::vector<Wish> wishes() {
  const SamplingParams greedy = {.temperature = 0.0f, .ignore_eos = true, .max_tokens = 7, .logprobs = 1};
  SamplingParams drawn = greedy;
  drawn.temperature = 0.5f;
  drawn.top_p = 0.9f;
  drawn.seed = 4;
  drawn.prompt_logprobs = 0;
  drawn.n = 2;
  SamplingParams biased = greedy;
  biased.logit_bias = {{700, 3.0f}, {701, 2.5f}};
  biased.allowed_token_ids = {500, 600, 700, 701, 702};
  biased.min_tokens = 5;
  biased.ignore_eos = false;
  biased.stop_token_ids = {700};
  SamplingParams penalized = greedy;
  penalized.frequency_penalty = 0.5f;
  SamplingParams constrained = greedy;
  constrained.constraint = std::make_shared<EvenTokens>();
  SamplingParams processed = greedy;
  processed.max_tokens = 4;
  processed.logits_processors = {[](auto, auto output, std::span<float> logits) { logits[output.size()] += 9.0f; }};
  return {{looping_prompt(19, 0), greedy},   {looping_prompt(12, 1), drawn},      {looping_prompt(9, 2), biased},
          {looping_prompt(8, 3), penalized}, {looping_prompt(7, 4), constrained}, {looping_prompt(6, 5), processed}};
}

std::vector<Generated> generate(const EngineOptions& options, const std::vector<Wish>& wishes, Stats* stats) {
  const std::unique_ptr<Engine> engine = make_engine(options);
  std::vector<Generated> all = generate(*engine, wishes);
  *stats = engine->stats();
  return all;
}

EngineOptions plain() {
  return {.dtype = "bfloat16", .max_model_len = 64, .max_num_seqs = 8, .max_num_batched_tokens = 64};
}

class SpeculationOnSimt : public testing::Test {
 protected:
  void SetUp() override { cudart_emu::reset(); }
  void TearDown() override { cudart_emu::reset(); }
};

TEST_F(SpeculationOnSimt, ChangesNoBit) {
  Stats stats;
  const auto expected = generate(plain(), wishes(), &stats);
  EXPECT_EQ(stats.num_draft_tokens, 0);
  EngineOptions ngram = plain();
  ngram.speculative_method = "ngram";
  ngram.num_speculative_tokens = 3;
  ngram.prompt_lookup_min = 1;
  ngram.prompt_lookup_max = 2;
  EXPECT_EQ(generate(ngram, wishes(), &stats), expected);
  EXPECT_GT(stats.num_draft_tokens, stats.num_accepted_tokens);
  EngineOptions own = plain();
  own.speculative_method = "draft_model";
  own.num_speculative_tokens = 3;
  own.draft_model = kDemo;
  EXPECT_EQ(generate(own, wishes(), &stats), expected);
  EXPECT_GT(stats.num_draft_tokens, 0);
  EXPECT_EQ(stats.num_draft_tokens, stats.num_accepted_tokens);
}

// The first rank guesses for both.
TEST_F(SpeculationOnSimt, ChangesNoBitOfRanks) {
  const std::unique_ptr<Checkpoint> checkpoint = open_safetensors(kDemo);
  const std::vector<int> ranks = {0, 0};
  const auto expected = generate(*engine_of_ranks(kDemo, plain(), ranks, checkpoint.get()), wishes());
  EngineOptions options = plain();
  options.speculative_method = "draft_model";
  options.num_speculative_tokens = 3;
  options.draft_model = kDemo;
  const auto engine = engine_of_ranks(kDemo, options, ranks, checkpoint.get(), checkpoint.get());
  EXPECT_EQ(generate(*engine, wishes()), expected);
  EXPECT_GT(engine->stats().num_accepted_tokens, 0);
}

// Few blocks: sequences come and go, and so do their drafts.
TEST_F(SpeculationOnSimt, ChangesNoBitWhenPreempted) {
  EngineOptions options = plain();
  Stats stats;
  const auto expected = generate(options, wishes(), &stats);
  options.max_model_len = 48;
  options.num_gpu_blocks_override = 4;
  options.speculative_method = "draft_model";
  options.num_speculative_tokens = 2;
  options.draft_model = kDemo;
  EXPECT_EQ(generate(options, wishes(), &stats), expected);
  EXPECT_GT(stats.num_preemptions, 0);
  EXPECT_GT(stats.num_accepted_tokens, 0);
}

// Every allocation fails once: an error that names it, or a request that ends with one; nothing is left behind, and who
// is not concerned gets the same tokens.
TEST_F(SpeculationOnSimt, OutOfMemoryAtEachAllocationInTurn) {
  const SamplingParams greedy = {.temperature = 0.0f, .ignore_eos = true, .max_tokens = 4, .logprobs = 0};
  SamplingParams large = greedy;
  large.logprobs = 40;
  large.allowed_token_ids.resize(60'000, 7);
  const std::vector<Wish> wishes = {{looping_prompt(5, 0), greedy}, {looping_prompt(4, 1), large}};
  EngineOptions options = plain();
  options.speculative_method = "draft_model";
  options.num_speculative_tokens = 2;
  options.draft_model = kDemo;
  Stats stats;
  const auto expected = generate(options, wishes, &stats);
  const cudart_emu::Live before = cudart_emu::live();
  set_log_sink([](LogLevel, const std::string&) {});
  int num_failed_starts = 0, num_failed_requests = 0, num_survived = 0;
  // Behind the start every third: engine_simt_test.cpp has those of plain requests, which are most of them.
  for (int64_t n = 1, reached = 1, started = 0; reached; n += started ? 3 : 1) {
    SCOPED_TRACE(str_cat("allocation ", n, " failed"));
    cudart_emu::fail_allocation_after(n);
    std::unique_ptr<Engine> engine;
    try {
      engine = make_engine(options);
    } catch (const OutOfMemory&) {
      ++num_failed_starts;
    }
    started = engine != nullptr ? 1 : 0;
    if (engine != nullptr) {
      const auto got = generate(*engine, wishes);
      EXPECT_EQ(got[0], expected[0]);
      if (got[1].error.empty()) {
        EXPECT_EQ(got[1], expected[1]);
        ++num_survived;
      } else {
        EXPECT_NE(got[1].error.find("no memory for the sampling parameters"), std::string::npos) << got[1].error;
        ++num_failed_requests;
      }
    }
    reached = cudart_emu::faults_pending() ? 0 : 1;
    engine.reset();
    cudart_emu::fail_allocation_after(0);
    EXPECT_EQ(cudart_emu::live(), before) << "something was left behind";
  }
  set_log_sink({});
  EXPECT_GT(num_failed_starts, 8);
  EXPECT_GT(num_failed_requests, 1);
  EXPECT_GT(num_survived, 0);
}

}  // namespace
}  // namespace quire
