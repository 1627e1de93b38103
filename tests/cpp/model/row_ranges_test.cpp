// Runs of rows against a set of numbers that does the same, one row at a time.
#include "model/row_ranges.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace quire {
namespace {

TEST(RowRanges, DoWhatSetsDo) {
  std::mt19937 random(1);
  const auto number = [&](int64_t below) { return static_cast<int64_t>(random() % static_cast<uint32_t>(below)); };
  for (int round = 0; round < 200; ++round) {
    const int64_t size = number(40);
    RowRanges ranges(size), kept(size);
    std::set<int64_t> rows, others;
    for (int64_t i = 0; i < size; ++i) {
      rows.insert(i);
      others.insert(i);
    }
    for (int i = 0; i < 6; ++i) {
      const int64_t begin = number(45), end = begin + number(10);
      RowRanges& changed = i % 2 == 0 ? ranges : kept;
      std::set<int64_t>& same = i % 2 == 0 ? rows : others;
      changed.remove(begin, end);
      std::erase_if(same, [&](int64_t row) { return row >= begin && row < end; });
      EXPECT_EQ(changed.num_rows(), static_cast<int64_t>(same.size()));
    }
    ranges.intersect(kept);
    std::erase_if(rows, [&](int64_t row) { return !others.contains(row); });
    ASSERT_EQ(ranges.num_rows(), static_cast<int64_t>(rows.size()));
    EXPECT_EQ(ranges.empty(), rows.empty());
    // Which rows these are: taking each of them out leaves none.
    for (const int64_t row : rows) ranges.remove(row, row + 1);
    EXPECT_TRUE(ranges.empty());
  }
}

}  // namespace
}  // namespace quire
