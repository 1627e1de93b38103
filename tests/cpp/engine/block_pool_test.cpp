// Blocks are free, idle or held, whatever is done with their handles.
#include "engine/block_pool.h"

#include <gtest/gtest.h>

#include <random>

#include "base/check.h"

namespace quire {
namespace {

TEST(BlockPool, GivesEachBlockOnce) {
  BlockPool pool(3);
  std::vector<BlockRef> blocks;
  for (int i = 0; i < 3; ++i) blocks.push_back(pool.allocate());
  EXPECT_EQ(blocks[0].id(), 0);
  EXPECT_EQ(blocks[1].id(), 1);
  EXPECT_EQ(blocks[2].id(), 2);
  EXPECT_FALSE(pool.allocate());
  blocks[1] = {};
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_EQ(pool.allocate().id(), 1);
  EXPECT_EQ(pool.num_free(), 1);
}

TEST(BlockPool, CopiesShareAndMovesDoNot) {
  BlockPool pool(1);
  BlockRef first = pool.allocate();
  BlockRef copy = first;
  EXPECT_EQ(first.use_count(), 2);
  BlockRef moved = std::move(copy);
  EXPECT_EQ(first.use_count(), 2);
  EXPECT_FALSE(copy);  // NOLINT: what a moved-from handle is, is the point
  BlockRef& alias = moved;
  moved = alias;
  EXPECT_EQ(first.use_count(), 2);
  first = {};
  EXPECT_EQ(pool.num_free(), 0);
  moved = {};
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_EQ(moved.use_count(), 0);
}

TEST(BlockPool, KeptBlocksBecomeIdleInOrder) {
  BlockPool pool(3);
  {
    std::vector<BlockRef> blocks;
    for (int i = 0; i < 3; ++i) blocks.push_back(pool.allocate());
    pool.keep(0);
    pool.keep(2);
    blocks[2] = {};
    blocks[0] = {};
    EXPECT_EQ(pool.num_idle(), 2);
    EXPECT_EQ(pool.num_held(), 1);
  }
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_EQ(pool.oldest_idle(), 2);
  pool.share(2) = {};  // held and given back: now the newest
  EXPECT_EQ(pool.oldest_idle(), 0);
  pool.drop(0);
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_EQ(pool.oldest_idle(), 2);
  pool.drop(2);
  EXPECT_EQ(pool.oldest_idle(), -1);
  pool.check_integrity();
}

TEST(BlockPool, RefusesWhatCannotBe) {
  EXPECT_THROW(BlockPool(0), InternalError);
  BlockPool pool(2);
  const BlockRef held = pool.allocate();
  EXPECT_THROW(pool.drop(0), InternalError);
  EXPECT_THROW(pool.share(1), InternalError);
  EXPECT_THROW(pool.keep(1), InternalError);
  EXPECT_THROW(pool.drop(1), InternalError);
}

TEST(BlockPoolDeathTest, AHandleMustNotOutliveItsPool) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_DEATH(
      {
        BlockRef outlives;
        BlockPool pool(1);
        outlives = pool.allocate();
      },
      "still held");
}

TEST(BlockPool, RandomUseLosesNothing) {
  std::mt19937 generator(1);
  const auto roll = [&](size_t end) { return std::uniform_int_distribution<size_t>(0, end - 1)(generator); };
  BlockPool pool(20);
  std::vector<BlockRef> handles;
  std::vector<int32_t> counts(20, 0);
  for (int step = 0; step < 20'000; ++step) {
    switch (roll(5)) {
      case 0:
        if (BlockRef block = pool.allocate()) {
          ASSERT_EQ(counts[static_cast<size_t>(block.id())]++, 0);
          handles.push_back(std::move(block));
        }
        break;
      case 1:
        if (!handles.empty()) {
          handles.push_back(handles[roll(handles.size())]);
          ++counts[static_cast<size_t>(handles.back().id())];
        }
        break;
      case 2:
        if (!handles.empty()) pool.keep(handles[roll(handles.size())].id());
        break;
      case 3:
        if (const int32_t id = pool.oldest_idle(); id >= 0) {
          if (roll(2) == 0) {
            pool.drop(id);
          } else {
            handles.push_back(pool.share(id));
            ++counts[static_cast<size_t>(id)];
          }
        }
        break;
      default:
        for (size_t n = roll(4); n > 0 && !handles.empty(); --n) {
          std::swap(handles[roll(handles.size())], handles.back());
          --counts[static_cast<size_t>(handles.back().id())];
          handles.pop_back();
        }
    }
    pool.check_integrity();
    for (int32_t id = 0; id < 20; ++id) ASSERT_EQ(pool.use_count(id), counts[static_cast<size_t>(id)]);
  }
}

}  // namespace
}  // namespace quire
