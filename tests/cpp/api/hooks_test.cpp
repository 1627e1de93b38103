// The caller's code in a step: constraints and logits processors, through the public class.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <stdexcept>

#include "quire/quire.h"

namespace quire {
namespace {

const std::string kDemo = QUIRE_DEMO_MODEL_DIR;

// Lets a sequence write `words` in turn: at each place any token of the list. Counts its calls.
class Path : public TokenConstraint {
 public:
  explicit Path(std::vector<std::vector<int32_t>> places) : places_(std::move(places)) {}
  std::shared_ptr<void> start() override {
    ++num_started;
    return std::make_shared<size_t>(0);
  }
  void fill_masks(std::span<MaskRow> rows) override {
    largest_call = std::max(largest_call, rows.size());
    for (MaskRow& row : rows) {
      const size_t at = *static_cast<size_t*>(row.state);
      EXPECT_EQ(row.output.size(), at);
      if (fails_at == static_cast<int>(at)) row.error = "no way on";
      if (throws_at == static_cast<int>(at)) throw std::runtime_error("lost");
      for (const int32_t id : places_[at]) row.mask[static_cast<size_t>(id) / 32] |= 1u << id % 32;
    }
  }
  void commit(std::span<CommittedToken> tokens) override {
    for (CommittedToken& token : tokens) {
      size_t& at = *static_cast<size_t*>(token.state);
      if (std::ranges::find(places_[at], token.token_id) == places_[at].end()) token.error = "not on the path";
      token.is_last = ++at == places_.size();
    }
  }
  int num_started = 0;
  size_t largest_call = 0;
  int fails_at = -1, throws_at = -1;

 private:
  std::vector<std::vector<int32_t>> places_;
};

SamplingParams with(std::shared_ptr<TokenConstraint> constraint) {
  SamplingParams params;
  params.max_tokens = 20;
  params.seed = 3;
  params.constraint = std::move(constraint);
  return params;
}

std::vector<RequestOutput> run(LLM& llm, const std::vector<SamplingParams>& wishes) {
  std::vector<RequestOutput> outputs(wishes.size());
  for (size_t i = 0; i < wishes.size(); ++i) {
    const auto keep = [&outputs, i](const Delta& delta) { outputs[i] = *delta.finished; };
    llm.submit({300, 301, 302 + static_cast<int32_t>(i)}, wishes[i], keep, Notify::finished);
  }
  while (llm.step()) {
  }
  return outputs;
}

TEST(Hooks, ConstraintDecidesEachToken) {
  LLM llm(kDemo, {.max_model_len = 128});
  const auto path = std::make_shared<Path>(std::vector<std::vector<int32_t>>{{400, 500}, {33, 1999}, {0, 64, 2047}});
  SamplingParams params = with(path);
  params.n = 3;
  params.logprobs = 0;
  params.ignore_eos = true;
  const std::vector<RequestOutput> outputs = run(llm, {params, params});
  EXPECT_EQ(path->num_started, 6);
  EXPECT_GE(path->largest_call, 4u);
  for (const RequestOutput& output : outputs) {
    for (const Completion& completion : output.completions) {
      ASSERT_EQ(completion.token_ids.size(), 3u);
      EXPECT_TRUE(completion.token_ids[0] == 400 || completion.token_ids[0] == 500);
      EXPECT_TRUE(completion.token_ids[1] == 33 || completion.token_ids[1] == 1999);
      EXPECT_EQ(completion.finish_reason, FinishReason::stop);
      EXPECT_TRUE(completion.is_complete);
      EXPECT_LT(completion.logprobs.logprobs[0], -0.5f) << "log-probabilities are the model's own";
    }
  }
}

TEST(Hooks, EndsBeforeAllElse) {
  LLM llm(kDemo, {.max_model_len = 128});
  SamplingParams params = with(std::make_shared<Path>(std::vector<std::vector<int32_t>>{{400}, {401}}));
  params.max_tokens = 2;
  EXPECT_EQ(run(llm, {params})[0].completions[0].finish_reason, FinishReason::stop);
  params = with(std::make_shared<Path>(std::vector<std::vector<int32_t>>{{400}, {401}, {402}}));
  params.max_tokens = 2;
  EXPECT_EQ(run(llm, {params})[0].completions[0].finish_reason, FinishReason::length);
  params = with(std::make_shared<Path>(std::vector<std::vector<int32_t>>{{400}, {401}, {402}}));
  params.stop_token_ids = {401};
  const RequestOutput stopped = run(llm, {params})[0];
  EXPECT_EQ(stopped.completions[0].stop_token_id, 401);
  EXPECT_FALSE(stopped.completions[0].is_complete);
}

TEST(Hooks, OthersAreTheSameBits) {
  const EngineOptions options = {.max_model_len = 128};
  SamplingParams free;
  free.seed = 9;
  free.logprobs = 2;
  free.ignore_eos = true;
  free.max_tokens = 25;
  LLM alone(kDemo, options);
  const RequestOutput want = alone.generate({{300, 301, 302}}, free)[0];
  LLM llm(kDemo, options);
  SamplingParams processed = free;
  processed.logits_processors.push_back([](auto, auto, std::span<float> logits) { logits[5] += 100.0f; });
  const auto failing = std::make_shared<Path>(std::vector<std::vector<int32_t>>{{400}, {401}, {402}});
  failing->throws_at = 2;
  const auto path = std::make_shared<Path>(std::vector<std::vector<int32_t>>(30, {400, 401}));
  const std::vector<RequestOutput> got = run(llm, {free, with(path), processed, with(failing)});
  EXPECT_EQ(got[0].completions[0].token_ids, want.completions[0].token_ids);
  EXPECT_EQ(got[0].completions[0].logprobs.logprobs, want.completions[0].logprobs.logprobs);
  EXPECT_EQ(got[2].completions[0].token_ids, std::vector<int32_t>(25, 5));
  EXPECT_EQ(got[3].completions[0].finish_reason, FinishReason::error);
}

TEST(Hooks, ErrorsEndTheirRequestAlone) {
  LLM llm(kDemo, {.max_model_len = 128});
  const std::vector<std::vector<int32_t>> places = {{400}, {401}, {402}};
  const auto throws = std::make_shared<Path>(places), fails = std::make_shared<Path>(places);
  throws->throws_at = 1;
  fails->fails_at = 2;
  const auto closed = std::make_shared<Path>(std::vector<std::vector<int32_t>>{{400}, {}});
  SamplingParams bad;
  bad.max_tokens = 20;
  bad.logits_processors.push_back([](auto, std::span<const int32_t> output, auto) {
    if (output.size() == 3) throw std::runtime_error("three");
  });
  const auto good = std::make_shared<Path>(places);
  const std::vector<RequestOutput> outputs = run(llm, {with(throws), with(fails), with(closed), bad, with(good)});
  const std::vector<std::pair<const char*, size_t>> wanted = {
      {"the request's constraint failed: lost", 1},
      {"no way on", 2},
      {"the request's constraint lets no token follow", 1},
      {"a logits processor of the request failed: three", 3},
  };
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_EQ(outputs[i].error, wanted[i].first);
    EXPECT_EQ(outputs[i].completions[0].finish_reason, FinishReason::error);
    EXPECT_EQ(outputs[i].completions[0].token_ids.size(), wanted[i].second);
  }
  EXPECT_EQ(outputs[4].completions[0].token_ids, (std::vector<int32_t>{400, 401, 402}));
  EXPECT_EQ(llm.stats().num_free_blocks + llm.stats().num_cached_blocks, llm.stats().num_blocks);
}

TEST(Hooks, ProcessorsComeInTheirOrderAndSeeTheTokens) {
  LLM llm(kDemo, {.max_model_len = 128});
  SamplingParams params;
  params.max_tokens = 4;
  params.temperature = 0.0f;
  std::vector<std::vector<int32_t>> seen;
  params.logits_processors.push_back(
      [&](std::span<const int32_t> prompt, std::span<const int32_t> output, auto logits) {
        EXPECT_EQ(prompt.size(), 3u);
        EXPECT_EQ(logits.size(), 2048u);
        seen.emplace_back(output.begin(), output.end());
        logits[700 + output.size()] = 1000.0f;
      });
  params.logits_processors.push_back([](auto, auto output, auto logits) {
    EXPECT_EQ(logits[700 + output.size()], 1000.0f);
    logits[800 + output.size()] = 2000.0f;
  });
  EXPECT_EQ(run(llm, {params})[0].completions[0].token_ids, (std::vector<int32_t>{800, 801, 802, 803}));
  EXPECT_EQ(seen, (std::vector<std::vector<int32_t>>{{}, {800}, {800, 801}, {800, 801, 802}}));
}

TEST(Hooks, MaySubmitAndCancelButNotStep) {
  LLM llm(kDemo, {.max_model_len = 128});
  std::vector<int32_t> added;
  SamplingParams inner;
  inner.max_tokens = 3;
  inner.ignore_eos = true;
  SamplingParams params = inner;
  params.logits_processors.push_back([&](auto, std::span<const int32_t> output, auto) {
    if (output.empty()) {
      llm.submit(
          {5, 6}, inner, [&](const Delta& delta) { added = delta.finished->completions[0].token_ids; },
          Notify::finished);
    }
    if (output.size() == 1) {
      EXPECT_TRUE(llm.cancel(1));
    }
    if (output.size() == 2) llm.step();
  });
  const std::vector<RequestOutput> outputs = run(llm, {params, inner});
  EXPECT_EQ(outputs[0].completions[0].token_ids.size(), 2u);
  EXPECT_NE(outputs[0].error.find("cannot run the engine that calls it"), std::string::npos) << outputs[0].error;
  EXPECT_EQ(outputs[1].completions[0].finish_reason, FinishReason::abort);
  EXPECT_EQ(added.size(), 3u);
}

TEST(Hooks, SurvivePreemption) {
  // Room for the prompts and little more: sequences are preempted and computed again.
  LLM llm(kDemo, {.max_model_len = 64, .num_gpu_blocks_override = 6});
  std::vector<SamplingParams> wishes;
  for (int i = 0; i < 4; ++i) {
    std::vector<std::vector<int32_t>> places;
    for (int32_t at = 0; at < 40; ++at) places.push_back({600 + 40 * i + at});
    wishes.push_back(with(std::make_shared<Path>(places)));
    wishes.back().max_tokens = 60;
  }
  const std::vector<RequestOutput> outputs = run(llm, wishes);
  EXPECT_GT(llm.stats().num_preemptions, 0);
  for (int32_t i = 0; i < 4; ++i) {
    const std::vector<int32_t>& ids = outputs[size_t(i)].completions[0].token_ids;
    ASSERT_EQ(ids.size(), 40u);
    for (int32_t at = 0; at < 40; ++at) EXPECT_EQ(ids[size_t(at)], 600 + 40 * i + at);
  }
}

}  // namespace
}  // namespace quire
