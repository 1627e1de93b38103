// The cache against a list of everything that was ever offered, with a good hash and with one that always collides.
#include "engine/prefix_cache.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "base/check.h"

namespace quire {
namespace {

uint64_t always_the_same(uint64_t, std::span<const int32_t>) { return 42; }

using Tokens = std::vector<int32_t>;
using Blocks = std::vector<BlockRef>;

// Allocates and offers what is not cached of `tokens`, as a sequence that computes them does.
Blocks compute(PrefixCache& cache, const Tokens& tokens, uint64_t salt, int32_t block_size) {
  Blocks blocks;
  const auto num_blocks = static_cast<int32_t>(tokens.size()) / block_size;
  cache.match(tokens, salt, num_blocks, blocks);
  for (auto index = static_cast<int32_t>(blocks.size()); index < num_blocks; ++index) {
    BlockRef block = cache.allocate();
    if (!block) break;
    blocks.push_back(std::move(block));
    EXPECT_TRUE(cache.insert(tokens, salt, blocks, index));
  }
  return blocks;
}

void release(Blocks& blocks) {
  while (!blocks.empty()) blocks.pop_back();
}

Blocks match(PrefixCache& cache, const Tokens& tokens, uint64_t salt = 0, int32_t max_blocks = 100) {
  Blocks blocks;
  cache.match(tokens, salt, max_blocks, blocks);
  return blocks;
}

class PrefixCacheTest : public ::testing::TestWithParam<PrefixCache::HashFunction> {};
INSTANTIATE_TEST_SUITE_P(Hashes, PrefixCacheTest, ::testing::Values(&hash_tokens, &always_the_same),
                         [](const auto& each) { return each.index == 0 ? "chained" : "always_colliding"; });

TEST_P(PrefixCacheTest, FindsPrefixesOfTheSameContentAlone) {
  BlockPool pool(8);
  PrefixCache cache(pool, 2, true, GetParam());
  Blocks blocks = compute(cache, {1, 2, 3, 4, 5}, 0, 2);
  ASSERT_EQ(blocks.size(), 2u);
  EXPECT_EQ(match(cache, {1, 2, 3, 4}).size(), 2u);
  EXPECT_EQ(match(cache, {1, 2, 3, 4, 9, 9})[1].id(), blocks[1].id());
  EXPECT_EQ(match(cache, {1, 2, 3, 4}, 0, 1).size(), 1u);
  EXPECT_EQ(match(cache, {1, 2, 3}).size(), 1u);
  EXPECT_EQ(match(cache, {1, 2, 9, 4}).size(), 1u);
  EXPECT_EQ(match(cache, {1}).size(), 0u);
  EXPECT_EQ(match(cache, {3, 4}).size(), 0u) << "a block is what it is behind its prefix alone";
  EXPECT_EQ(match(cache, {3, 4, 3, 4}).size(), 0u);
  EXPECT_EQ(match(cache, {1, 2, 1, 2}).size(), 1u);
  EXPECT_EQ(match(cache, {1, 2, 3, 4}, 5).size(), 0u) << "another salt";
  cache.check_integrity();
}

TEST_P(PrefixCacheTest, KeepsOneCopyOfEqualContent) {
  BlockPool pool(4);
  PrefixCache cache(pool, 1, true, GetParam());
  const Tokens tokens = {7, 8};
  Blocks first, second;
  for (Blocks* each : {&first, &second}) {
    for (int i = 0; i < 2; ++i) each->push_back(cache.allocate());
  }
  for (int32_t index = 0; index < 2; ++index) {
    EXPECT_TRUE(cache.insert(tokens, 0, first, index));
    EXPECT_TRUE(cache.insert(tokens, 0, second, index));
    EXPECT_EQ(first[static_cast<size_t>(index)].id(), second[static_cast<size_t>(index)].id());
  }
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_EQ(cache.num_cached(), 2);
  EXPECT_EQ(cache.num_evictable(), 0);
  cache.check_integrity();
}

TEST_P(PrefixCacheTest, EvictsLeastRecentlyHeldFirstAndLeavesBeforeParents) {
  BlockPool pool(6);
  PrefixCache cache(pool, 1, true, GetParam());
  const Tokens a = {1, 2, 3}, b = {4, 5, 6};
  Blocks blocks = compute(cache, a, 0, 1);
  release(blocks);
  blocks = compute(cache, b, 0, 1);
  release(blocks);
  blocks = match(cache, {1, 2});  // a's beginning is used again
  release(blocks);
  Blocks taken;
  const auto lengths_after = [&](size_t num_taken) {
    while (taken.size() < num_taken) taken.push_back(cache.allocate());
    // A look would count as use, so the answer is put together in a way that keeps the order of the two.
    std::pair<size_t, size_t> lengths;
    Blocks of_b = match(cache, b), of_a = match(cache, a);
    lengths = {of_a.size(), of_b.size()};
    release(of_b);
    release(of_a);
    return lengths;
  };
  taken.push_back(cache.allocate());  // the end of a was not used since b
  EXPECT_EQ(lengths_after(1), std::pair(size_t{2}, size_t{3}));
  EXPECT_EQ(lengths_after(2), std::pair(size_t{2}, size_t{2}));
  EXPECT_EQ(lengths_after(4), std::pair(size_t{2}, size_t{0}));
  EXPECT_EQ(lengths_after(5), std::pair(size_t{1}, size_t{0}));
  EXPECT_EQ(lengths_after(6), std::pair(size_t{0}, size_t{0}));
  EXPECT_FALSE(cache.allocate());
  cache.check_integrity();
}

TEST_P(PrefixCacheTest, PromisesAreFoundUntilTheyAreRetracted) {
  BlockPool pool(8);
  PrefixCache cache(pool, 1, true, GetParam());
  const Tokens tokens = {1, 2, 3};
  Blocks blocks = compute(cache, {1}, 0, 1);
  for (int i = 0; i < 2; ++i) blocks.push_back(cache.allocate());
  EXPECT_FALSE(cache.promise(tokens, 0, blocks, 0)) << "it is there";
  EXPECT_TRUE(cache.promise(tokens, 0, blocks, 1));
  EXPECT_TRUE(cache.promise(tokens, 0, blocks, 2));
  Blocks others = {blocks[0], cache.allocate()};
  EXPECT_FALSE(cache.promise(tokens, 0, others, 1)) << "an equal one is promised";
  EXPECT_NE(others[1].id(), blocks[1].id());
  release(others);
  others = match(cache, {1, 2, 3, 4});
  ASSERT_EQ(others.size(), 3u);
  cache.check_integrity();
  const int32_t middle = blocks[1].id(), last = blocks[2].id();
  release(blocks);
  others.pop_back();  // the last one is idle, the middle one held
  cache.retract(last);
  cache.retract(middle);
  cache.retract(middle);  // not there any more
  EXPECT_TRUE(cache.contains(others[0].id()));
  EXPECT_FALSE(cache.contains(middle));
  EXPECT_EQ(match(cache, tokens).size(), 1u);
  cache.check_integrity();
  release(others);
  EXPECT_EQ(pool.num_free(), 7);
  cache.check_integrity();
}

TEST_P(PrefixCacheTest, ClearDropsWhatNobodyHolds) {
  BlockPool pool(4);
  PrefixCache cache(pool, 2, true, GetParam());
  Blocks held = compute(cache, {1, 2}, 0, 2);
  Blocks given_back = compute(cache, {1, 2, 3, 4}, 0, 2);
  release(given_back);
  EXPECT_FALSE(cache.clear());
  EXPECT_EQ(cache.num_cached(), 1);
  EXPECT_EQ(match(cache, {1, 2, 3, 4}).size(), 1u);
  release(held);
  EXPECT_TRUE(cache.clear());
  EXPECT_EQ(pool.num_free(), 4);
  EXPECT_TRUE(match(cache, {1, 2}).empty());
}

TEST(PrefixCache, SwitchedOffItKeepsNothing) {
  BlockPool pool(2);
  PrefixCache cache(pool, 1, false);
  Blocks blocks;
  blocks.push_back(cache.allocate());
  EXPECT_FALSE(cache.insert(Tokens{5}, 0, blocks, 0));
  release(blocks);
  EXPECT_TRUE(match(cache, {5}).empty());
  EXPECT_EQ(pool.num_free(), 2);
  cache.check_integrity();
}

TEST(PrefixCache, RefusesABlockBeforeItsParent) {
  BlockPool pool(2);
  PrefixCache cache(pool, 1, true);
  Blocks blocks;
  for (int i = 0; i < 2; ++i) blocks.push_back(cache.allocate());
  EXPECT_THROW(cache.insert(Tokens{5, 6}, 0, blocks, 1), InternalError);
}

// Every block remembers the whole prefix it was computed for; a match must return blocks of exactly that prefix.
TEST_P(PrefixCacheTest, RandomUseNeverGivesAWrongBlock) {
  std::mt19937 generator(3);
  const auto roll = [&](int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(generator);
  };
  constexpr int32_t kBlockSize = 3;
  BlockPool pool(24);
  PrefixCache cache(pool, kBlockSize, true, GetParam());
  std::map<int32_t, std::pair<uint64_t, Tokens>> contents;  // block id -> salt and prefix up to its end
  std::vector<Blocks> sequences(5);
  int64_t num_hits = 0;
  for (int step = 0; step < 5000; ++step) {
    Blocks& blocks = sequences[static_cast<size_t>(roll(0, 4))];
    release(blocks);
    Tokens tokens(static_cast<size_t>(roll(0, 20)));
    for (int32_t& token : tokens) token = roll(0, 9) / 9;  // mostly 0, so that prefixes meet
    const auto salt = static_cast<uint64_t>(roll(0, 1));
    const auto num_matched = static_cast<int64_t>(match(cache, tokens, salt).size());
    num_hits += num_matched;
    blocks = compute(cache, tokens, salt, kBlockSize);
    for (size_t b = 0; b < blocks.size(); ++b) {
      const std::pair content(salt, Tokens(tokens.begin(), tokens.begin() + static_cast<int64_t>(b + 1) * kBlockSize));
      if (static_cast<int64_t>(b) < num_matched) {
        ASSERT_EQ(contents.at(blocks[b].id()), content);
      } else {
        contents[blocks[b].id()] = content;
      }
    }
    cache.check_integrity();
  }
  EXPECT_GT(num_hits, 1000);
}

}  // namespace
}  // namespace quire
