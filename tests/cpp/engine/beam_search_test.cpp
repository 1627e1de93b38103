// The choice of beams, on a model that is a table of random log-probabilities: against all sequences there are, and
// against a plain loop over whole sequences that knows no slots, no bounds and no early end.
#include "engine/beam_search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <utility>

#include "base/check.h"

namespace quire {
namespace {

using Tokens = std::vector<int32_t>;

// Normalised, and the same for the same prefix.
class RandomModel {
 public:
  RandomModel(int32_t vocab_size, uint32_t seed) : vocab_size_(vocab_size), seed_(seed) {}
  int32_t vocab_size() const { return vocab_size_; }

  const std::vector<float>& logprobs(const Tokens& prefix) {
    const auto [entry, is_new] = known_.try_emplace(prefix);
    if (!is_new) return entry->second;
    std::vector<uint32_t> key(prefix.begin(), prefix.end());
    key.push_back(seed_);
    std::seed_seq sequence(key.begin(), key.end());
    std::mt19937 generator(sequence);
    std::normal_distribution<double> logit(0.0, 2.0);
    std::vector<double> logits(static_cast<size_t>(vocab_size_));
    double sum = 0.0;
    for (double& each : logits) sum += std::exp(each = logit(generator));
    for (const double each : logits) entry->second.push_back(static_cast<float>(each - std::log(sum)));
    return entry->second;
  }

  // The most likely tokens, best first.
  Tokens likeliest(const Tokens& prefix, size_t count) {
    const std::vector<float>& all = logprobs(prefix);
    Tokens ids(all.size());
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
    std::ranges::stable_sort(
        ids, [&](int32_t a, int32_t b) { return all[static_cast<size_t>(a)] > all[static_cast<size_t>(b)]; });
    ids.resize(std::min(count, ids.size()));
    return ids;
  }

 private:
  int32_t vocab_size_;
  uint32_t seed_;
  std::map<Tokens, std::vector<float>> known_;
};

struct Case {
  BeamSearchParams params;
  Tokens stop_ids;
  int64_t num_prompt = 3;
};

struct Found {
  Tokens tokens;
  double sum = 0.0;
};

// Runs the search as the engine does: the tokens of a slot are what its moves made them.
std::vector<Completion> search(RandomModel& model, const Case& test, int32_t* num_steps = nullptr) {
  BeamSearch beams(test.params, test.stop_ids, test.num_prompt, test.params.max_tokens);
  const int32_t width = BeamSearch::num_candidates(test.params.beam_width, test.stop_ids.size(), model.vocab_size());
  std::map<int32_t, Tokens> slots = {{0, {}}};
  while (!beams.finished()) {
    // In an order that is not that of the beams.
    for (auto slot = slots.rbegin(); slot != slots.rend(); ++slot) {
      EXPECT_FALSE(beams.ready());
      const Tokens ids = model.likeliest(slot->second, static_cast<size_t>(width));
      std::vector<float> logprobs;
      for (const int32_t id : ids) logprobs.push_back(model.logprobs(slot->second)[static_cast<size_t>(id)]);
      beams.offer(slot->first, ids, logprobs);
    }
    EXPECT_TRUE(beams.ready());
    const BeamMoves moves = beams.advance();
    if (num_steps != nullptr) ++*num_steps;
    for (const int32_t slot : moves.dropped) EXPECT_EQ(slots.erase(slot), 1u);
    for (const auto& [parent, slot] : moves.forks) {
      EXPECT_LT(slot, test.params.beam_width);
      EXPECT_TRUE(slots.emplace(slot, slots.at(parent)).second) << "slot " << slot << " is in use";
    }
    EXPECT_TRUE(beams.finished() || moves.appended.size() == slots.size());
    for (const auto& [slot, token] : moves.appended) slots.at(slot).push_back(token);
  }
  return beams.results();
}

double score_of(const Case& test, const Found& found) {
  const bool is_stopped = std::ranges::count(test.stop_ids, found.tokens.back()) > 0;
  auto length = static_cast<double>(found.tokens.size());
  if (test.params.length_includes_prompt) length += static_cast<double>(test.num_prompt) - (is_stopped ? 1.0 : 0.0);
  return found.sum / std::pow(length, test.params.length_penalty);
}

void keep_best(const Case& test, std::vector<Found>& all) {
  std::ranges::stable_sort(all, [&](const Found& a, const Found& b) { return score_of(test, a) > score_of(test, b); });
  all.resize(std::min(all.size(), static_cast<size_t>(test.params.beam_width)));
}

// vLLM's loop, told with whole sequences.
std::vector<Found> plain_loop(RandomModel& model, const Case& test) {
  std::vector<Found> beams = {{}}, completed;
  const auto width =
      static_cast<size_t>(BeamSearch::num_candidates(test.params.beam_width, test.stop_ids.size(), model.vocab_size()));
  for (int32_t step = 0; step < test.params.max_tokens && !beams.empty(); ++step) {
    std::vector<Found> next;
    for (const Found& beam : beams) {
      for (const int32_t token : model.likeliest(beam.tokens, width)) {
        Found longer = beam;
        longer.tokens.push_back(token);
        longer.sum += static_cast<double>(model.logprobs(beam.tokens)[static_cast<size_t>(token)]);
        (std::ranges::count(test.stop_ids, token) > 0 ? completed : next).push_back(longer);
      }
    }
    keep_best(test, next);
    beams = next;
  }
  completed.insert(completed.end(), beams.begin(), beams.end());
  keep_best(test, completed);
  return completed;
}

// Every sequence there is.
void enumerate(RandomModel& model, const Case& test, const Found& prefix, std::vector<Found>& all) {
  for (int32_t token = 0; token < model.vocab_size(); ++token) {
    Found longer = prefix;
    longer.tokens.push_back(token);
    longer.sum += static_cast<double>(model.logprobs(prefix.tokens)[static_cast<size_t>(token)]);
    const bool ends =
        std::ranges::count(test.stop_ids, token) > 0 || std::ssize(longer.tokens) == test.params.max_tokens;
    if (ends) {
      all.push_back(longer);
    } else {
      enumerate(model, test, longer, all);
    }
  }
}

void expect_equal(const Case& test, const std::vector<Completion>& got, const std::vector<Found>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].token_ids, expected[i].tokens) << "place " << i;
    EXPECT_DOUBLE_EQ(got[i].cumulative_logprob, expected[i].sum) << "place " << i;
    EXPECT_EQ(got[i].index, static_cast<int32_t>(i));
    const int32_t last = expected[i].tokens.back();
    const bool is_stopped = std::ranges::count(test.stop_ids, last) > 0;
    EXPECT_EQ(got[i].finish_reason, is_stopped ? FinishReason::stop : FinishReason::length);
    EXPECT_EQ(got[i].stop_token_id, is_stopped && last != test.stop_ids.front() ? last : -1);
  }
}

TEST(BeamSearch, WideEnoughItFindsTheBestOfAllSequences) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    RandomModel model(4, seed);
    for (const double penalty : {1.0, 0.0, 2.0, -1.0}) {
      Case test{.params = {.beam_width = 256, .max_tokens = 4, .length_penalty = penalty}, .stop_ids = {2}};
      test.params.length_includes_prompt = seed % 2 == 0;
      std::vector<Found> all;
      enumerate(model, test, {}, all);
      keep_best(test, all);
      const std::vector<Completion> got = search(model, test);
      ASSERT_EQ(got.size(), all.size());
      for (size_t i = 0; i < got.size(); ++i)
        EXPECT_NEAR(score_of(test, {got[i].token_ids, got[i].cumulative_logprob}), score_of(test, all[i]), 1e-12);
      EXPECT_EQ(got.front().token_ids, all.front().tokens);
    }
  }
}

TEST(BeamSearch, IsThePlainLoop) {
  std::mt19937 generator(7);
  const auto roll = [&](int32_t low, int32_t high) { return std::uniform_int_distribution(low, high)(generator); };
  for (uint32_t seed = 0; seed < 400; ++seed) {
    RandomModel model(roll(2, 40), seed);
    Case test;
    test.params = {.beam_width = roll(1, 8), .max_tokens = roll(1, 12)};
    test.params.length_penalty = std::vector{1.0, 0.0, 0.6, 2.0, -0.5}[static_cast<size_t>(roll(0, 4))];
    test.params.length_includes_prompt = roll(0, 1) == 0;
    for (int32_t i = roll(0, 3); i > 0; --i) test.stop_ids.push_back(roll(0, model.vocab_size() - 1));
    test.num_prompt = roll(1, 30);
    SCOPED_TRACE(str_cat("seed ", seed));
    expect_equal(test, search(model, test), plain_loop(model, test));
  }
}

TEST(BeamSearch, EndsWhenNoBeamCanBecomeBetter) {
  // Stop tokens are nearly certain: the rest of 1000 steps cannot matter.
  BeamSearch beams({.beam_width = 2, .max_tokens = 1000}, {9}, 1, 1000);
  int32_t num_steps = 0;
  while (!beams.finished()) {
    const std::vector<int32_t> slots = num_steps == 0 ? std::vector{0} : std::vector{0, 1};
    for (const int32_t slot : slots) {
      beams.offer(slot, std::vector{9, 1, 2, 3}, std::vector{-0.001f, -90.0f, -91.0f, -92.0f});
    }
    beams.advance();
    ++num_steps;
  }
  EXPECT_LT(num_steps, 1000);
  EXPECT_EQ(beams.results().front().token_ids, std::vector<int32_t>{9});
}

TEST(BeamSearch, LogprobsAreThoseOfTheStepsOfTheTokens) {
  RandomModel model(30, 3);
  const Case test{.params = {.beam_width = 3, .max_tokens = 6}, .stop_ids = {}};
  for (const Completion& found : search(model, test)) {
    ASSERT_EQ(found.logprobs.width, 7);
    Tokens prefix;
    double sum = 0.0;
    for (size_t i = 0; i < found.token_ids.size(); ++i) {
      const std::vector<float>& all = model.logprobs(prefix);
      const Tokens likeliest = model.likeliest(prefix, 6);
      EXPECT_EQ(found.logprobs.token_ids[7 * i], found.token_ids[i]);
      for (size_t k = 0; k < 6; ++k) {
        EXPECT_EQ(found.logprobs.token_ids[7 * i + 1 + k], likeliest[k]);
        EXPECT_EQ(found.logprobs.logprobs[7 * i + 1 + k], all[static_cast<size_t>(likeliest[k])]);
      }
      const auto rank = static_cast<size_t>(found.logprobs.sampled_ranks[i]);
      EXPECT_EQ(likeliest[rank - 1], found.token_ids[i]);
      sum += static_cast<double>(found.logprobs.logprobs[7 * i]);
      prefix.push_back(found.token_ids[i]);
    }
    EXPECT_DOUBLE_EQ(found.cumulative_logprob, sum);
  }
}

TEST(BeamSearch, TokensThatCannotComeAreNoCandidates) {
  const float never = -std::numeric_limits<float>::infinity();
  BeamSearch beams({.beam_width = 2, .max_tokens = 3}, {}, 1, 3);
  beams.offer(0, std::vector{5, 6, 7, 8}, std::vector{-0.5f, never, std::nanf(""), never});
  EXPECT_EQ(beams.advance().appended.size(), 1u);
  beams.offer(0, std::vector{5, 6, 7, 8}, std::vector{never, never, never, never});
  beams.advance();
  EXPECT_TRUE(beams.finished());
  EXPECT_TRUE(beams.results().empty());
}

TEST(BeamSearch, EqualSumsGoInTheOrderOfTheCandidates) {
  BeamSearch beams({.beam_width = 2, .max_tokens = 1}, {}, 1, 1);
  beams.offer(0, std::vector{4, 3, 2, 1}, std::vector{-1.0f, -1.0f, -1.0f, -1.0f});
  beams.advance();
  const std::vector<Completion> results = beams.results();
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0].token_ids, Tokens{4});
  EXPECT_EQ(results[1].token_ids, Tokens{3});
}

TEST(BeamSearch, MistakesOfTheCallerAreFound) {
  BeamSearch beams({.beam_width = 2, .max_tokens = 3}, {}, 1, 3);
  EXPECT_THROW(beams.advance(), InternalError);
  EXPECT_THROW(beams.offer(1, std::vector{1}, std::vector{0.0f}), InternalError);
  beams.offer(0, std::vector{1, 2}, std::vector{-1.0f, -2.0f});
  EXPECT_THROW(beams.offer(0, std::vector{1, 2}, std::vector{-1.0f, -2.0f}), InternalError);
}

}  // namespace
}  // namespace quire
