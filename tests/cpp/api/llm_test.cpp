// The public class on the embedded model: what it promises natively, bit for bit where it promises bits.
#include <gtest/gtest.h>

#include <filesystem>
#include <thread>

#include "quire/quire.h"
#include "support/allocation_counter.h"

namespace quire {
namespace {

const std::string kDemo = QUIRE_DEMO_MODEL_DIR;

std::vector<int32_t> prompt_of(int32_t length, int32_t salt) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < length; ++i) ids.push_back(300 + (i * 37 + salt * 101) % 1500);
  return ids;
}

SamplingParams drawn(int32_t max_tokens) {
  return {.temperature = 0.9f, .top_p = 0.95f, .seed = 7, .ignore_eos = true, .max_tokens = max_tokens, .logprobs = 3};
}

void expect_same_bits(const RequestOutput& a, const RequestOutput& b, const char* what) {
  ASSERT_EQ(a.completions.size(), b.completions.size());
  for (size_t i = 0; i < a.completions.size(); ++i) {
    EXPECT_EQ(a.completions[i].token_ids, b.completions[i].token_ids) << what;
    EXPECT_EQ(a.completions[i].logprobs.token_ids, b.completions[i].logprobs.token_ids) << what;
    EXPECT_EQ(a.completions[i].logprobs.logprobs, b.completions[i].logprobs.logprobs) << what;  // exact
  }
}

// A prompt long enough to span blocks, key chunks and several prefill chunks.
class Invariance : public ::testing::TestWithParam<const char*> {
 protected:
  EngineOptions options() const { return {.dtype = GetParam(), .max_model_len = 512, .num_threads = 2}; }
  RequestOutput alone(EngineOptions changed) const { return LLM(kDemo, changed).generate({prompt_}, params_).front(); }
  const std::vector<int32_t> prompt_ = prompt_of(150, 0);
  const SamplingParams params_ = drawn(40);
};

TEST_P(Invariance, BatchMates) {
  const RequestOutput reference = alone(options());
  std::vector<std::vector<int32_t>> prompts;
  for (int32_t i = 0; i < 64; ++i) prompts.push_back(prompt_of(1 + i * 5 % 200, i + 1));
  prompts.insert(prompts.begin() + 31, prompt_);
  LLM llm(kDemo, options());
  expect_same_bits(reference, llm.generate(prompts, params_)[31], "among 64 others");
}

TEST_P(Invariance, EveryChunkSize) {
  const RequestOutput reference = alone(options());
  for (const int64_t budget : {1, 2, 3, 5, 15, 16, 17, 31, 64, 100, 149, 150, 151}) {
    EngineOptions changed = options();
    changed.max_num_batched_tokens = budget;
    changed.max_num_seqs = 1;
    expect_same_bits(reference, alone(changed), ("chunks of " + std::to_string(budget)).c_str());
  }
}

TEST_P(Invariance, Threads) {
  const RequestOutput reference = alone(options());
  for (const int32_t threads : {1, 3}) {
    EngineOptions changed = options();
    changed.num_threads = threads;
    expect_same_bits(reference, alone(changed), "threads");
  }
}

TEST_P(Invariance, PrefixCacheHit) {
  const RequestOutput reference = alone(options());
  LLM llm(kDemo, options());
  llm.generate({prompt_}, params_);
  const RequestOutput again = llm.generate({prompt_}, params_).front();
  EXPECT_GE(again.num_cached_tokens, 144);
  expect_same_bits(reference, again, "prefix cache hit");
}

TEST_P(Invariance, Preemption) {
  EngineOptions small = options();
  small.max_model_len = 256;
  small.num_gpu_blocks_override = 22;  // 352 tokens: not enough for two sequences of 190
  small.enable_prefix_caching = false;
  const std::vector<std::vector<int32_t>> prompts(8, prompt_);
  LLM llm(kDemo, small);
  const std::vector<RequestOutput> outputs = llm.generate(prompts, params_);
  EXPECT_GT(llm.stats().num_preemptions, 0);
  const RequestOutput reference = alone(options());
  for (const RequestOutput& output : outputs) expect_same_bits(reference, output, "preempted");
}

// Of every prompt token, bit for bit: among others, in chunks, after the prefix was cached, after a preemption.
TEST_P(Invariance, PromptLogprobs) {
  SamplingParams params = params_;
  params.prompt_logprobs = 2;
  const auto expect_same = [](const RequestOutput& a, const RequestOutput& b, const char* what) {
    EXPECT_EQ(a.prompt_logprobs.sampled_ranks.size(), 149u) << what;
    EXPECT_EQ(a.prompt_logprobs.token_ids, b.prompt_logprobs.token_ids) << what;
    EXPECT_EQ(a.prompt_logprobs.logprobs, b.prompt_logprobs.logprobs) << what;
    EXPECT_EQ(a.prompt_logprobs.sampled_ranks, b.prompt_logprobs.sampled_ranks) << what;
    expect_same_bits(a, b, what);
  };
  LLM llm(kDemo, options());
  const RequestOutput reference = llm.generate({prompt_}, params).front();
  for (size_t i = 0; i < 149; ++i) EXPECT_EQ(reference.prompt_logprobs.token_ids[3 * i], prompt_[i + 1]);
  const RequestOutput again = llm.generate({prompt_}, params).front();
  EXPECT_EQ(again.num_cached_tokens, 0);
  expect_same(again, reference, "prefix in the cache");
  expect_same(llm.generate({prompt_of(40, 1), prompt_, prompt_}, params)[2], reference, "among others");
  for (const int64_t budget : {1, 31, 149}) {
    EngineOptions chunked = options();
    chunked.max_num_batched_tokens = budget;
    chunked.max_num_seqs = 1;
    expect_same(LLM(kDemo, chunked).generate({prompt_}, params).front(), reference, "in chunks");
  }
  EngineOptions small = options();
  small.max_model_len = 256;
  small.num_gpu_blocks_override = 22;
  LLM poor(kDemo, small);
  const RequestOutput preempted = poor.generate({prompt_of(150, 5), prompt_of(150, 6), prompt_}, params)[2];
  EXPECT_GT(preempted.num_preemptions, 0);
  expect_same(preempted, reference, "preempted");
}

// Hidden states and logits, of prompt and output, bit for bit in the same ways.
TEST_P(Invariance, ReturnedStates) {
  SamplingParams params = params_;
  params.return_hidden_states = params.return_logits = true;
  const auto expect_same = [](const RequestOutput& a, const RequestOutput& b, const char* what) {
    EXPECT_EQ(std::ssize(a.prompt_hidden_states.values), 150 * a.prompt_hidden_states.width) << what;
    EXPECT_EQ(a.prompt_hidden_states.values, b.prompt_hidden_states.values) << what;
    EXPECT_EQ(std::ssize(a.completions[0].logits.values), 40 * a.completions[0].logits.width) << what;
    EXPECT_EQ(a.completions[0].hidden_states.values, b.completions[0].hidden_states.values) << what;
    EXPECT_EQ(a.completions[0].logits.values, b.completions[0].logits.values) << what;
    expect_same_bits(a, b, what);
  };
  LLM llm(kDemo, options());
  const RequestOutput reference = llm.generate({prompt_}, params).front();
  EXPECT_EQ(reference.prompt_hidden_states.width, llm.info().hidden_size);
  EXPECT_EQ(reference.completions[0].logits.width, llm.info().vocab_size);
  expect_same_bits(reference, alone(options()), "without the wish");
  expect_same(llm.generate({prompt_}, params).front(), reference, "prefix in the cache");
  expect_same(llm.generate({prompt_of(40, 1), prompt_, prompt_}, params)[2], reference, "among others");
  for (const int64_t budget : {1, 31}) {
    EngineOptions chunked = options();
    chunked.max_num_batched_tokens = budget;
    chunked.max_num_seqs = 1;
    expect_same(LLM(kDemo, chunked).generate({prompt_}, params).front(), reference, "in chunks");
  }
  EngineOptions small = options();
  small.max_model_len = 256;
  small.num_gpu_blocks_override = 22;
  LLM poor(kDemo, small);
  const RequestOutput preempted = poor.generate({prompt_of(150, 5), prompt_of(150, 6), prompt_}, params)[2];
  EXPECT_GT(preempted.num_preemptions, 0);
  expect_same(preempted, reference, "preempted");
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Invariance, ::testing::Values("bfloat16", "float32", "float16"));

TEST(Llm, SequencesOfARequestDifferAndSharePromptBlocks) {
  LLM llm(kDemo, {.max_model_len = 256, .enable_prefix_caching = false});
  SamplingParams params = drawn(20);
  params.n = 4;
  const RequestOutput output = llm.generate({prompt_of(100, 3)}, params).front();
  ASSERT_EQ(output.completions.size(), 4u);
  EXPECT_NE(output.completions[0].token_ids, output.completions[1].token_ids);
  // Sequence i draws as a request of its own with seed + i.
  params.n = 1;
  params.seed = *params.seed + 2;
  const RequestOutput single = llm.generate({prompt_of(100, 3)}, params).front();
  EXPECT_EQ(single.completions[0].token_ids, output.completions[2].token_ids);
}

TEST(Llm, StepsStreamTokensAndCancel) {
  LLM llm(kDemo, {.max_model_len = 256});
  std::vector<int32_t> streamed;
  RequestOutput finished;
  const auto keep = [&](const Delta& delta) {
    streamed.insert(streamed.end(), delta.token_ids.begin(), delta.token_ids.end());
    if (delta.finished != nullptr) finished = *delta.finished;
  };
  const uint64_t cancelled = llm.submit(prompt_of(30, 1), {.ignore_eos = true, .max_tokens = 100});
  llm.submit(prompt_of(20, 2), {.temperature = 0, .ignore_eos = true, .max_tokens = 12}, keep);
  EXPECT_TRUE(llm.step());
  EXPECT_TRUE(llm.cancel(cancelled));
  EXPECT_FALSE(llm.cancel(cancelled));
  while (llm.step()) {
  }
  EXPECT_EQ(streamed.size(), 12u);
  ASSERT_EQ(finished.completions.size(), 1u);
  EXPECT_EQ(finished.completions[0].token_ids, streamed);
  EXPECT_EQ(finished.completions[0].finish_reason, FinishReason::length);
  const Stats stats = llm.stats();
  EXPECT_EQ(stats.num_running + stats.num_waiting, 0);
  EXPECT_EQ(stats.num_free_blocks + stats.num_cached_blocks, stats.num_blocks);
}

TEST(Llm, ThreadsShareOneEngine) {
  LLM llm(kDemo, {.max_model_len = 256});
  const SamplingParams params{.temperature = 0, .ignore_eos = true, .max_tokens = 24};
  std::vector<RequestOutput> expected;
  for (int32_t i = 0; i < 8; ++i) expected.push_back(llm.generate({prompt_of(20 + i, i)}, params).front());
  std::vector<RequestOutput> got(8);
  std::vector<std::thread> threads;
  for (int32_t i = 0; i < 8; ++i) {
    threads.emplace_back(
        [&, i] { got[static_cast<size_t>(i)] = llm.generate({prompt_of(20 + i, i)}, params).front(); });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(got[i].completions[0].token_ids, expected[i].completions[0].token_ids);
}

TEST(Llm, BadInputIsRefusedBeforeAnyWork) {
  LLM llm(kDemo, {.max_model_len = 64});
  EXPECT_THROW(llm.generate({{}}), std::invalid_argument);
  EXPECT_THROW(llm.generate({{300, 99999}}), std::invalid_argument);
  EXPECT_THROW(llm.generate({prompt_of(64, 0)}), std::invalid_argument);
  EXPECT_THROW(llm.generate({{300}}, {.temperature = -1.0f}), std::invalid_argument);
  EXPECT_THROW(llm.generate({{300}}, {.stop = {"x"}}), std::invalid_argument);
  try {
    llm.generate({{300}, {}, {301}});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("prompt 1"), std::string::npos) << error.what();
  }
  EXPECT_EQ(llm.stats().num_waiting, 0);
  EXPECT_THROW(LLM("/nonexistent"), std::invalid_argument);
  EXPECT_THROW(LLM(kDemo, {.cpu_isa = "mmx"}), std::invalid_argument);
  EXPECT_THROW(LLM(kDemo, {.max_model_len = 512, .num_gpu_blocks_override = 3}), std::invalid_argument);
}

TEST(Llm, BeamSearchGivesTheBestFirstAndTakesTheSameCare) {
  LLM llm(kDemo, {.dtype = "float32", .max_model_len = 128});
  const BeamSearchParams params = {.beam_width = 4, .max_tokens = 12, .ignore_eos = true};
  const std::vector<RequestOutput> found = llm.beam_search({prompt_of(20, 0), prompt_of(33, 1)}, params);
  ASSERT_EQ(found.size(), 2u);
  for (const RequestOutput& output : found) {
    ASSERT_EQ(output.completions.size(), 4u);
    for (size_t i = 1; i < 4; ++i) {
      EXPECT_GE(output.completions[i - 1].cumulative_logprob, output.completions[i].cumulative_logprob);
    }
    EXPECT_EQ(output.completions[0].token_ids.size(), 12u);
  }
  const RequestOutput greedy =
      llm.generate({prompt_of(20, 0)}, {.temperature = 0.0f, .ignore_eos = true, .max_tokens = 12, .logprobs = 0})
          .front();
  EXPECT_GE(found[0].completions[0].cumulative_logprob, greedy.completions[0].cumulative_logprob - 1e-4);
  // One beam is greedy search.
  const RequestOutput one =
      llm.beam_search({prompt_of(20, 0)}, {.beam_width = 1, .max_tokens = 12, .ignore_eos = true}).front();
  EXPECT_EQ(one.completions[0].token_ids, greedy.completions[0].token_ids);

  FinishReason reason = FinishReason::none;
  const uint64_t id = llm.submit_beam_search(prompt_of(20, 0), params, [&](const Delta& delta) {
    ASSERT_NE(delta.finished, nullptr);
    reason = delta.finish_reason;
  });
  llm.step();
  EXPECT_TRUE(llm.cancel(id));
  EXPECT_EQ(reason, FinishReason::abort);
  EXPECT_EQ(llm.stats().num_running, 0);
  EXPECT_THROW(llm.beam_search({{300}}, {.beam_width = 0}), std::invalid_argument);
  EXPECT_THROW(llm.beam_search({{300}}, {.max_tokens = 0}), std::invalid_argument);
  EXPECT_THROW(llm.beam_search({{300}}, {.stop_token_ids = {-1}}), std::invalid_argument);
  EXPECT_THROW(llm.beam_search({{300}, {}}), std::invalid_argument);
  EXPECT_EQ(llm.stats().num_waiting, 0);
}

// The constitution: after start-up a step allocates nothing. The output vectors are reserved at admission.
TEST(Llm, SteadyDecodeAllocatesNothing) {
  LLM llm(kDemo, {.max_model_len = 512, .max_num_seqs = 8});
  for (int32_t i = 0; i < 8; ++i) {
    llm.submit(prompt_of(30, i), {.temperature = 0.8f, .top_k = 20, .ignore_eos = true, .max_tokens = 300}, {},
               Notify::finished);
  }
  for (int i = 0; i < 40; ++i) llm.step();  // the prompts, and the first use of every buffer
  const int64_t before = testing::num_allocations();
  for (int i = 0; i < 200; ++i) llm.step();
  EXPECT_EQ(testing::num_allocations(), before);
}

TEST(Llm, PrioritiesNeedThePolicy) {
  LLM first_come(kDemo, {.max_model_len = 64});
  try {
    first_come.submit(prompt_of(5, 1), {}, {}, Notify::finished, 3);
    FAIL() << "no error";
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "Got priority 3 but Priority scheduling is not enabled.");
  }
  LLM by_priority(kDemo, {.max_model_len = 64, .max_num_seqs = 1, .scheduling_policy = "priority"});
  std::vector<int> finished;
  for (const int priority : {2, 1, -4, 1}) {
    by_priority.submit(
        prompt_of(5, 1), {.max_tokens = 2},
        [&finished, priority](const Delta& delta) {
          if (delta.finished != nullptr) finished.push_back(priority);
        },
        Notify::finished, priority);
  }
  while (by_priority.step()) {
  }
  EXPECT_EQ(finished, (std::vector<int>{-4, 1, 1, 2}));
  EXPECT_THROW(LLM(kDemo, {.scheduling_policy = "lottery"}), std::invalid_argument);
  EXPECT_THROW(LLM(kDemo, {.logprobs_mode = "cooked"}), std::invalid_argument);
}

TEST(Llm, PromptLogprobsHaveLimits) {
  LLM llm(kDemo, {.max_model_len = 64});
  const auto message = [&](int32_t wanted) -> std::string {
    try {
      llm.check(prompt_of(5, 1), {.prompt_logprobs = wanted});
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  };
  const auto vocab_size = static_cast<int32_t>(llm.info().vocab_size);
  EXPECT_EQ(message(-1), "prompt_logprobs must be non-negative, got -1.");
  EXPECT_EQ(message(vocab_size), "");
  EXPECT_EQ(message(vocab_size + 1), "Requested prompt logprobs of " + std::to_string(vocab_size + 1) +
                                         ", which is greater than max allowed: " + std::to_string(vocab_size));
}

}  // namespace
}  // namespace quire
