// Batches of waiting texts: budgets, order, kinds, patience; and that every text is planned exactly once.
#include "engine/pooling_queue.h"

#include <gtest/gtest.h>

#include <random>

namespace quire {
namespace {

using Ids = std::vector<uint64_t>;
const PoolingKind kMean = {.type = PoolingType::mean};

TEST(PoolingQueue, LongestFirstWithinTheBudget) {
  PoolingQueue queue(100, 8);
  for (const auto& [id, length] :
       std::vector<std::pair<uint64_t, int64_t>>{{0, 10}, {1, 60}, {2, 50}, {3, 35}, {4, 5}}) {
    queue.add(id, length, kMean);
  }
  EXPECT_EQ(queue.plan(), (Ids{1, 3, 4}));  // 60 + 35 + 5; 50 did not fit
  EXPECT_EQ(queue.plan(), (Ids{2, 0}));
  EXPECT_EQ(queue.plan(), Ids{});
}

TEST(PoolingQueue, EqualLengthsInOrderOfArrival) {
  PoolingQueue queue(100, 2);
  for (const uint64_t id : {4, 7, 9}) queue.add(id, 3, kMean);
  EXPECT_EQ(queue.plan(), (Ids{4, 7}));  // two texts a step
  EXPECT_EQ(queue.plan(), (Ids{9}));
}

TEST(PoolingQueue, TextsLongerThanTheBudgetRunAlone) {
  PoolingQueue queue(10, 8);
  queue.add(0, 4, kMean);
  queue.add(1, 25, kMean);
  EXPECT_EQ(queue.plan(), (Ids{1}));
  EXPECT_EQ(queue.plan(), (Ids{0}));
}

TEST(PoolingQueue, KindsDoNotShareAStep) {
  PoolingQueue queue(100, 8);
  const PoolingKind all = {.type = PoolingType::all}, without_head = {.type = PoolingType::mean, .with_head = false};
  queue.add(0, 5, all);
  queue.add(1, 50, kMean);
  queue.add(2, 9, without_head);
  queue.add(3, 20, all);
  EXPECT_EQ(queue.plan(), (Ids{3, 0}));  // the kind of the oldest
  EXPECT_EQ(queue.plan(), (Ids{1}));
  EXPECT_EQ(queue.plan(), (Ids{2}));
}

TEST(PoolingQueue, RemovedTextsAreNotPlanned) {
  PoolingQueue queue(100, 8);
  queue.add(0, 5, kMean);
  queue.add(1, 6, kMean);
  EXPECT_TRUE(queue.remove(0));
  EXPECT_FALSE(queue.remove(0));
  EXPECT_EQ(queue.plan(), (Ids{1}));
}

// Longer texts come in all the time; the short one runs all the same.
TEST(PoolingQueue, NobodyWaitsForever) {
  PoolingQueue queue(10, 8);
  queue.add(0, 1, kMean);
  uint64_t next = 1;
  int64_t steps = 0;
  for (bool found = false; !found; ++steps) {
    ASSERT_LE(steps, PoolingQueue::kPatience + 1);
    queue.add(next++, 10, kMean);
    queue.add(next++, 10, kMean);
    for (const uint64_t id : queue.plan()) found = found || id == 0;
  }
  EXPECT_GE(steps, PoolingQueue::kPatience / 2);
}

TEST(PoolingQueue, EveryTextOnceAndNoStepOverItsBudgets) {
  std::mt19937 random(3);
  for (int round = 0; round < 50; ++round) {
    const int64_t budget = 1 + random() % 60, most = 1 + random() % 9;
    PoolingQueue queue(budget, most);
    std::map<uint64_t, std::pair<int64_t, PoolingKind>> waiting;
    uint64_t next = 0;
    size_t planned = 0;
    for (int step = 0; step < 80; ++step) {
      for (unsigned i = step < 40 ? random() % 8 : 0; i > 0; --i) {
        const PoolingKind kind = {.type = random() % 3 == 0 ? PoolingType::all : PoolingType::mean};
        waiting[next] = {1 + static_cast<int64_t>(random() % 40), kind};
        queue.add(next, waiting[next].first, kind);
        ++next;
      }
      const Ids ids = queue.plan();
      ASSERT_EQ(ids.empty(), waiting.empty());
      ASSERT_LE(static_cast<int64_t>(ids.size()), most);
      int64_t tokens = 0;
      for (const uint64_t id : ids) {
        ASSERT_TRUE(waiting.contains(id));
        tokens += waiting[id].first;
        ASSERT_EQ(waiting[id].second, waiting[ids.front()].second);
      }
      ASSERT_TRUE(tokens <= budget || ids.size() == 1) << tokens << " tokens, budget " << budget;
      for (const uint64_t id : ids) waiting.erase(id);
      planned += ids.size();
    }
    while (queue.size() > 0) planned += queue.plan().size();
    EXPECT_EQ(planned, next);
  }
}

}  // namespace
}  // namespace quire
