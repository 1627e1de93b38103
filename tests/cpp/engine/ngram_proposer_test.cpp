// What is looked up, against a search that tries every place.
#include "engine/ngram_proposer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace quire {
namespace {

using Tokens = std::vector<int32_t>;

Tokens propose(const Tokens& tokens, int32_t min_length, int32_t max_length, int32_t max_drafts) {
  NgramProposer proposer(min_length, max_length);
  Tokens drafts;
  proposer.propose(tokens, max_drafts, drafts);
  return drafts;
}

// The longest suffix first, its first place first.
Tokens naive(const Tokens& tokens, int32_t min_length, int32_t max_length, int32_t max_drafts) {
  for (int32_t length = max_length; length >= min_length; --length) {
    for (size_t begin = 0; begin + static_cast<size_t>(length) < tokens.size(); ++begin) {
      const auto first = tokens.begin() + static_cast<int64_t>(begin);
      if (!std::equal(first, first + length, tokens.end() - length)) continue;
      const auto next = first + length;
      return {next, next + std::min<int64_t>(max_drafts, tokens.end() - next)};
    }
  }
  return {};
}

TEST(NgramProposer, TakesWhatFollowed) {
  EXPECT_EQ(propose({1, 2, 3, 4, 5, 1, 2}, 2, 2, 3), (Tokens{3, 4, 5}));
  EXPECT_EQ(propose({1, 2, 3, 4, 5, 1, 2}, 2, 2, 2), (Tokens{3, 4}));
  EXPECT_EQ(propose({1, 2, 3, 1, 2}, 2, 2, 9), (Tokens{3, 1, 2}));  // no further than the text
  EXPECT_EQ(propose({1, 2, 3, 1, 2}, 1, 1, 0), Tokens{});
}

TEST(NgramProposer, NeedsAnEarlierPlace) {
  EXPECT_EQ(propose({}, 1, 3, 4), Tokens{});
  EXPECT_EQ(propose({1}, 1, 3, 4), Tokens{});
  EXPECT_EQ(propose({1, 2, 3}, 1, 3, 4), Tokens{});
  EXPECT_EQ(propose({1, 2, 9, 3, 2}, 2, 2, 4), Tokens{});
  EXPECT_EQ(propose({5, 5}, 1, 1, 4), Tokens{5});  // places may overlap
  EXPECT_EQ(propose({5, 5, 5}, 2, 2, 4), Tokens{5});
}

TEST(NgramProposer, LongestSuffixThenFirstPlace) {
  const Tokens tokens = {7, 3, 8, 7, 2, 3, 9, 7, 2, 3, 6, 2, 3};
  EXPECT_EQ(propose(tokens, 1, 1, 1), Tokens{8});  // the first 3
  EXPECT_EQ(propose(tokens, 1, 2, 1), Tokens{9});  // 2 3 is longer, its first place
  EXPECT_EQ(propose(tokens, 1, 5, 1), Tokens{9});
  EXPECT_EQ(propose(tokens, 3, 5, 1), Tokens{});
}

// Texts that repeat themselves, token by token and in pieces, with every pair of lengths.
TEST(NgramProposer, FindsWhatASearchFinds) {
  std::mt19937 generator(1);
  const auto roll = [&](int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(generator);
  };
  int32_t num_found = 0;
  for (int32_t round = 0; round < 300; ++round) {
    const int32_t vocab_size = roll(1, 6), min_length = roll(1, 4), max_length = min_length + roll(0, 4);
    NgramProposer proposer(min_length, max_length);
    Tokens tokens, drafts;
    while (tokens.size() < 120) {
      for (int32_t i = roll(1, round % 3 == 0 ? 30 : 2); i > 0; --i) tokens.push_back(roll(0, vocab_size) * 1000);
      const int32_t max_drafts = roll(0, 6);
      proposer.propose(tokens, max_drafts, drafts);
      ASSERT_EQ(drafts, naive(tokens, min_length, max_length, max_drafts))
          << "round " << round << ", " << tokens.size();
      num_found += drafts.empty() ? 0 : 1;
    }
  }
  EXPECT_GT(num_found, 1000);
}

// Asking again, as after a step that gave nothing new, changes nothing.
TEST(NgramProposer, MayBeAskedAgain) {
  NgramProposer proposer(1, 3);
  Tokens first, second;
  proposer.propose(Tokens{4, 5, 6, 4, 5}, 3, first);
  proposer.propose(Tokens{4, 5, 6, 4, 5}, 3, second);
  EXPECT_EQ(first, second);
  EXPECT_EQ(first, (Tokens{6, 4, 5}));
}

}  // namespace
}  // namespace quire
