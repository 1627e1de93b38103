// Speculative decoding on the embedded model: the outputs are those of plain decoding, bit for bit, whoever guesses,
// and fewer steps are taken where the guesses are right.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <numeric>

#include "base/hash.h"
#include "quire/quire.h"
#include "support/allocation_counter.h"

namespace quire {
namespace {

const std::string kDemo = QUIRE_DEMO_MODEL_DIR;

struct Wish {
  std::vector<int32_t> prompt;
  SamplingParams params;
};

// A text that comes back to itself, so that there is something to look up.
std::vector<int32_t> looping_prompt(int32_t length, int32_t period, int32_t salt) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < length; ++i) ids.push_back(300 + (i % period * 37 + salt * 101) % 1500);
  return ids;
}

SamplingParams greedy(int32_t max_tokens) {
  return {.temperature = 0.0f, .ignore_eos = true, .max_tokens = max_tokens, .logprobs = 2};
}

SamplingParams drawn(int32_t max_tokens, int64_t seed) {
  return {.temperature = 0.6f,
          .top_p = 0.95f,
          .top_k = 50,
          .seed = seed,
          .ignore_eos = true,
          .max_tokens = max_tokens,
          .logprobs = 2};
}

// Every kind of request side by side: those that are guessed for, and those whose rows depend on the text.
std::vector<Wish> many_wishes() {
  std::vector<Wish> wishes = {{looping_prompt(40, 7, 0), greedy(60)}, {looping_prompt(33, 11, 1), drawn(60, 7)}};
  SamplingParams several = drawn(40, 3);
  several.n = 3;
  several.prompt_logprobs = 1;
  wishes.push_back({looping_prompt(50, 9, 2), several});
  SamplingParams held = greedy(50);
  held.ignore_eos = false;
  held.min_tokens = 20;
  held.stop_token_ids = {265, 278, 300, 310, 350};
  wishes.push_back({looping_prompt(21, 5, 3), held});
  SamplingParams biased = drawn(40, 5);
  biased.min_p = 0.02f;
  biased.logit_bias = {{700, 3.0f}, {701, 2.5f}};
  biased.bad_words_token_ids = {{702}};
  wishes.push_back({looping_prompt(30, 6, 4), biased});
  SamplingParams penalized = drawn(40, 6);
  penalized.repetition_penalty = 1.3f;
  penalized.presence_penalty = 0.4f;
  wishes.push_back({looping_prompt(40, 8, 5), penalized});
  SamplingParams worded = greedy(40);
  worded.bad_words_token_ids = {{300, 337}, {337, 374}};
  wishes.push_back({looping_prompt(40, 7, 0), worded});
  SamplingParams processed = greedy(30);
  processed.logits_processors = {[](auto, std::span<const int32_t> output, std::span<float> logits) {
    logits[(output.size() * 13) % 1000] += 8.0f;
  }};
  wishes.push_back({looping_prompt(20, 4, 6), processed});
  return wishes;
}

// All wishes at once; with deltas put together, which must give the same as the outputs.
std::vector<RequestOutput> generate(LLM& llm, const std::vector<Wish>& wishes) {
  std::vector<RequestOutput> outputs(wishes.size());
  std::vector<std::map<int32_t, std::vector<int32_t>>> told(wishes.size());
  for (size_t i = 0; i < wishes.size(); ++i) {
    llm.submit(wishes[i].prompt, wishes[i].params, [&, i](const Delta& delta) {
      if (delta.finished != nullptr) {
        outputs[i] = *delta.finished;
      } else {
        auto& tokens = told[i][delta.index];
        tokens.insert(tokens.end(), delta.token_ids.begin(), delta.token_ids.end());
      }
    });
  }
  while (llm.step()) {
  }
  for (size_t i = 0; i < wishes.size(); ++i) {
    for (const Completion& completion : outputs[i].completions) {
      EXPECT_EQ(told[i][completion.index], completion.token_ids) << "request " << i;
    }
  }
  return outputs;
}

std::vector<RequestOutput> generate(const EngineOptions& options, const std::vector<Wish>& wishes,
                                    Stats* stats = nullptr) {
  LLM llm(kDemo, options);
  std::vector<RequestOutput> outputs = generate(llm, wishes);
  if (stats != nullptr) *stats = llm.stats();
  return outputs;
}

void expect_same(const std::vector<RequestOutput>& got, const std::vector<RequestOutput>& expected, const char* what) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    SCOPED_TRACE(std::string(what) + ", request " + std::to_string(i));
    EXPECT_EQ(got[i].error, expected[i].error);
    EXPECT_EQ(got[i].prompt_logprobs.logprobs, expected[i].prompt_logprobs.logprobs);
    ASSERT_EQ(got[i].completions.size(), expected[i].completions.size());
    for (size_t c = 0; c < got[i].completions.size(); ++c) {
      const Completion &a = got[i].completions[c], &b = expected[i].completions[c];
      EXPECT_EQ(a.token_ids, b.token_ids);
      EXPECT_EQ(a.finish_reason, b.finish_reason);
      EXPECT_EQ(a.stop_token_id, b.stop_token_id);
      EXPECT_EQ(a.stop_string_index, b.stop_string_index);
      EXPECT_EQ(a.logprobs.token_ids, b.logprobs.token_ids);
      EXPECT_EQ(a.logprobs.logprobs, b.logprobs.logprobs);  // exact
      EXPECT_EQ(a.logprobs.sampled_ranks, b.logprobs.sampled_ranks);
      EXPECT_EQ(a.cumulative_logprob, b.cumulative_logprob);
    }
  }
}

// The embedded model with half of its signs turned: the same tokens, other opinions about them.
class Stranger {
 public:
  Stranger() : folder_(std::filesystem::path(::testing::TempDir()) / ("quire_stranger_" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(folder_);
    std::filesystem::copy(kDemo, folder_, std::filesystem::copy_options::recursive);
    std::ifstream in(std::filesystem::path(kDemo) / "model.safetensors", std::ios::binary);
    std::vector<char> bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
    for (size_t i = 8 + header_bytes + 1; i < bytes.size(); i += 2) {  // the sign of a 16-bit float
      if (mix64(i) % 2 == 0) bytes[i] = static_cast<char>(bytes[i] ^ 0x80);
    }
    std::ofstream out(folder_ / "model.safetensors", std::ios::binary);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  ~Stranger() { std::filesystem::remove_all(folder_); }
  std::string folder() const { return folder_.string(); }

 private:
  std::filesystem::path folder_;
};

EngineOptions plain() { return {.dtype = "float32", .max_model_len = 256, .num_threads = 2, .seed = 11}; }

EngineOptions ngram(int32_t num_tokens, int32_t min_length, int32_t max_length) {
  EngineOptions options = plain();
  options.speculative_method = "ngram";
  options.num_speculative_tokens = num_tokens;
  options.prompt_lookup_min = min_length;
  options.prompt_lookup_max = max_length;
  return options;
}

EngineOptions drafted(int32_t num_tokens, const std::string& folder) {
  EngineOptions options = plain();
  options.speculative_method = "draft_model";
  options.num_speculative_tokens = num_tokens;
  options.draft_model = folder;
  return options;
}

std::vector<EngineOptions> every_way(const std::string& stranger) {
  return {ngram(4, 1, 3), ngram(1, 2, 2), ngram(9, 1, 1), drafted(3, kDemo), drafted(5, stranger)};
}

class Speculation : public ::testing::Test {
 protected:
  const std::vector<Wish> wishes_ = many_wishes();
  const Stranger stranger_;
};

TEST_F(Speculation, ChangesNoBit) {
  for (const char* dtype : {"float32", "bfloat16"}) {
    EngineOptions options = plain();
    options.dtype = dtype;
    Stats before, after;
    const auto expected = generate(options, wishes_, &before);
    for (EngineOptions& changed : every_way(stranger_.folder())) {
      changed.dtype = dtype;
      expect_same(generate(changed, wishes_, &after), expected, changed.speculative_method.c_str());
      EXPECT_GT(after.num_draft_tokens, 0);
      EXPECT_EQ(after.generated_tokens, before.generated_tokens);
    }
  }
}

// Chunks of a few tokens, which leave little for drafts; one place only.
TEST_F(Speculation, ChangesNoBitInSmallSteps) {
  const auto expected = generate(plain(), wishes_);
  for (const int64_t budget : {1, 9}) {
    for (EngineOptions& changed : every_way(stranger_.folder())) {
      changed.max_num_batched_tokens = budget;
      changed.max_num_seqs = std::min<int64_t>(budget, 3);
      expect_same(generate(changed, wishes_), expected, changed.speculative_method.c_str());
    }
  }
}

// Blocks for little more than one sequence.
TEST_F(Speculation, ChangesNoBitWhenPreempted) {
  const auto expected = generate(plain(), wishes_);
  for (EngineOptions& changed : every_way(stranger_.folder())) {
    for (const bool caching : {true, false}) {
      changed.num_gpu_blocks_override = 17;
      changed.enable_prefix_caching = caching;
      Stats stats;
      expect_same(generate(changed, wishes_, &stats), expected, changed.speculative_method.c_str());
      EXPECT_GT(stats.num_preemptions, 0);
      EXPECT_GT(stats.num_draft_tokens, 0);
    }
  }
}

// The second time prompts and outputs come from the cache, as far as they are whole blocks of committed tokens.
TEST_F(Speculation, ChangesNoBitBehindCachedPrefixes) {
  const auto expected = generate(plain(), wishes_);
  for (const EngineOptions& changed : every_way(stranger_.folder())) {
    LLM llm(kDemo, changed);
    expect_same(generate(llm, wishes_), expected, "first");
    const int64_t drafted_before = llm.stats().num_draft_tokens, accepted_before = llm.stats().num_accepted_tokens;
    const auto again = generate(llm, wishes_);
    expect_same(again, expected, "again");
    EXPECT_GT(again[0].num_cached_tokens, 0);
    // What is guessed does not depend on who computed the prefix.
    EXPECT_EQ(llm.stats().num_draft_tokens - drafted_before, drafted_before);
    EXPECT_EQ(llm.stats().num_accepted_tokens - accepted_before, accepted_before);
    // Behind an output that is in the cache, drafts of its last block included.
    std::vector<Wish> longer = {{wishes_[0].prompt, greedy(20)}};
    const std::vector<int32_t>& output = expected[0].completions[0].token_ids;
    longer[0].prompt.insert(longer[0].prompt.end(), output.begin(), output.end());
    const auto continued = generate(llm, longer);
    EXPECT_GT(continued[0].num_cached_tokens, 80);
    expect_same(continued, generate(plain(), longer), "continued");
  }
}

// A model that guesses for itself is always right, also where tokens are drawn: both draw with the same noise.
TEST_F(Speculation, ModelAgreesWithItself) {
  const std::vector<Wish> wishes = {{looping_prompt(40, 7, 0), greedy(64)}, {looping_prompt(20, 9, 1), drawn(64, 3)}};
  Stats stats;
  const auto outputs = generate(drafted(3, kDemo), wishes, &stats);
  EXPECT_EQ(stats.num_accepted_tokens, stats.num_draft_tokens);
  EXPECT_EQ(stats.num_steps, 1 + 16);  // the prompts, then 15 times four and the last three
  for (const RequestOutput& output : outputs) {
    EXPECT_EQ(output.spec_token_acceptance_counts, (std::vector<int64_t>{17, 16, 16, 15}));
  }
}

// Draws of two models that disagree agree by chance; then every step gives one token, as without.
TEST_F(Speculation, StrangerIsSeldomRight) {
  Stats stats;
  const auto outputs = generate(drafted(3, stranger_.folder()), {{looping_prompt(40, 7, 0), greedy(64)}}, &stats);
  EXPECT_LT(stats.num_accepted_tokens * 10, stats.num_draft_tokens);
  EXPECT_GE(stats.num_steps, 55);
  const std::vector<int64_t>& counts = outputs[0].spec_token_acceptance_counts;
  EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), int64_t{0}), 64);
}

TEST_F(Speculation, LooksUpWhatRepeats) {
  Stats before, after;
  std::vector<Wish> wishes = {{{}, greedy(100)}};
  for (int32_t i = 0; i < 50; ++i) wishes[0].prompt.push_back(300 + i % 7);
  generate(plain(), wishes, &before);
  generate(ngram(6, 1, 3), wishes, &after);
  EXPECT_LT(after.num_steps * 2, before.num_steps);
  EXPECT_GT(after.num_accepted_tokens, 50);
  EXPECT_EQ(after.generated_tokens, 100);
}

TEST_F(Speculation, StopsInTheMidstOfDrafts) {
  LLM reference(kDemo, plain());
  const Wish whole = {looping_prompt(60, 6, 0), greedy(100)};
  const std::vector<int32_t> tokens = generate(reference, {whole})[0].completions[0].token_ids;
  std::vector<std::string> text(1800);
  for (size_t i = 0; i < text.size(); ++i) text[i] = "<" + std::to_string(i) + ">";
  reference.set_vocabulary(text);
  LLM guessing(kDemo, ngram(7, 1, 3)), own(kDemo, drafted(4, kDemo));
  guessing.set_vocabulary(text);
  own.set_vocabulary(text);
  for (size_t end = 30; end < 60; end += 2) {
    std::vector<Wish> wishes(3, whole);
    wishes[0].params.stop = {text[static_cast<size_t>(tokens[end - 1])].substr(1) +
                             text[static_cast<size_t>(tokens[end])]};
    wishes[1].params.max_tokens = static_cast<int32_t>(end);
    wishes[2].params.stop_token_ids = {tokens[end]};
    wishes[2].params.min_tokens = static_cast<int32_t>(end) - 3;
    const auto expected = generate(reference, wishes);
    expect_same(generate(guessing, wishes), expected, "ngram");
    expect_same(generate(own, wishes), expected, "draft model");
  }
}

// Drafts end where the draft model's context does; the model goes on alone.
TEST_F(Speculation, GoesOnPastTheDraftModelsContext) {
  const std::vector<Wish> wishes = {{looping_prompt(30, 7, 0), greedy(60)}, {looping_prompt(80, 7, 1), drawn(60, 2)}};
  EngineOptions options = drafted(4, kDemo);
  options.draft_max_model_len = 64;
  Stats stats;
  const auto outputs = generate(options, wishes, &stats);
  expect_same(outputs, generate(plain(), wishes), "short context");
  EXPECT_GT(outputs[0].spec_token_acceptance_counts[4], 0);
  EXPECT_EQ(outputs[1].spec_token_acceptance_counts, (std::vector<int64_t>{60, 0, 0, 0, 0}));
}

TEST_F(Speculation, IsSwitchedOffForLargeBatches) {
  EngineOptions options = drafted(4, kDemo);
  options.speculative_disable_by_batch_size = 2;
  const Wish wish = {looping_prompt(30, 7, 0), greedy(20)};
  Stats stats;
  generate(options, {wish, wish}, &stats);
  EXPECT_GT(stats.num_draft_tokens, 0);
  const auto outputs = generate(options, {wish, wish, wish}, &stats);
  EXPECT_EQ(stats.num_draft_tokens, 0);
  expect_same(outputs, generate(plain(), {wish, wish, wish}), "off");
}

TEST_F(Speculation, BeamSearchGoesOnBeside) {
  const BeamSearchParams beams = {.beam_width = 3, .max_tokens = 12};
  LLM reference(kDemo, plain());
  const RequestOutput expected = reference.beam_search({looping_prompt(30, 7, 0)}, beams)[0];
  for (const EngineOptions& options : every_way(stranger_.folder())) {
    LLM llm(kDemo, options);
    const RequestOutput got = llm.beam_search({looping_prompt(30, 7, 0)}, beams)[0];
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(got.completions[i].token_ids, expected.completions[i].token_ids);
  }
}

TEST_F(Speculation, MemoryOfTheDraftModelIsPlanned) {
  EngineOptions without = plain(), with = drafted(3, kDemo);
  without.num_gpu_blocks_override = with.num_gpu_blocks_override = 64;
  const ModelInfo one = plan_model(kDemo, without), two = plan_model(kDemo, with);
  EXPECT_EQ(two.weight_bytes, 2 * one.weight_bytes);
  EXPECT_EQ(two.kv_cache_bytes, 2 * one.kv_cache_bytes);
  EXPECT_EQ(two.kv_bytes_per_token, 2 * one.kv_bytes_per_token);
  EXPECT_GT(two.workspace_bytes, one.workspace_bytes);
}

// From code that runs in the midst of a step: the one that is cancelled is gone when the step's tokens come.
TEST_F(Speculation, CancelledInTheMidstOfAStep) {
  for (const EngineOptions& options : every_way(stranger_.folder())) {
    LLM llm(kDemo, options);
    FinishReason reason = FinishReason::none;
    const uint64_t doomed = llm.submit(looping_prompt(40, 7, 0), greedy(100), [&](const Delta& delta) {
      if (delta.finished != nullptr) reason = delta.finish_reason;
    });
    SamplingParams cancelling = greedy(12);
    cancelling.logits_processors = {[&](auto, std::span<const int32_t> output, std::span<float>) {
      if (output.size() == 9) llm.cancel(doomed);
    }};
    const auto outputs =
        generate(llm, {{looping_prompt(20, 4, 1), cancelling}, {looping_prompt(33, 11, 1), drawn(60, 7)}});
    EXPECT_EQ(reason, FinishReason::abort);
    EXPECT_EQ(outputs[0].completions[0].token_ids.size(), 12u);
    EXPECT_EQ(outputs[1].completions[0].token_ids, generate(plain(), {wishes_[1]})[0].completions[0].token_ids);
  }
}

// As without: what a step needs is there after the first ones.
TEST_F(Speculation, SteadyDecodeAllocatesNothing) {
  for (EngineOptions options : {drafted(3, kDemo), drafted(3, stranger_.folder())}) {
    options.max_model_len = 1024;
    LLM llm(kDemo, options);
    for (int32_t i = 0; i < 4; ++i) {
      llm.submit(looping_prompt(30, 7, i), {.temperature = 0.0f, .ignore_eos = true, .max_tokens = 900}, {},
                 Notify::finished);
    }
    for (int i = 0; i < 30; ++i) llm.step();
    const int64_t before = testing::num_allocations();
    for (int i = 0; i < 100; ++i) llm.step();
    EXPECT_EQ(testing::num_allocations(), before);
    EXPECT_EQ(llm.stats().num_running, 4);
  }
}

TEST_F(Speculation, RefusesWhatCannotBe) {
  const auto message_of = [](const EngineOptions& options) -> std::string {
    try {
      plan_model(kDemo, options);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  };
  EngineOptions options = ngram(0, 1, 2);
  EXPECT_EQ(message_of(options), "num_speculative_tokens must be in [1, 1024], got 0");
  options = ngram(2, 3, 2);
  EXPECT_EQ(message_of(options), "prompt_lookup_min=3 must be <= prompt_lookup_max=2");
  options = ngram(2, -1, 2);
  EXPECT_EQ(message_of(options), "prompt_lookup_min=-1 must be > 0");
  options.speculative_method = "eagle";
  EXPECT_EQ(message_of(options), "Invalid speculative_method \"eagle\". Known values: ngram, draft_model");
  options.speculative_method = "";
  EXPECT_NE(message_of(options).find("no speculative_method"), std::string::npos);
  EXPECT_NE(message_of(drafted(2, "")).find("needs draft_model"), std::string::npos);
  EXPECT_NE(message_of(drafted(2, "/nowhere")).find("no draft model at /nowhere"), std::string::npos);
  EXPECT_EQ(message_of(ngram(2, 0, 0)), "");
  EXPECT_EQ(message_of(drafted(2, kDemo)), "");
}

}  // namespace
}  // namespace quire
