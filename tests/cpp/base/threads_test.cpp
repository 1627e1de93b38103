#include "base/threads.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <thread>
#include <vector>

namespace quire {
namespace {

// Every task of every loop runs exactly once, and its plain writes are seen by the caller: loops of many sizes follow
// each other without a pause, so workers that come late meet the next loop.
TEST(ThreadPool, EveryTaskRunsOnceInLoopsThatFollowEachOther) {
  for (const int num_threads : {1, 2, 3, 8}) {
    ThreadPool pool(num_threads);
    EXPECT_EQ(pool.num_threads(), num_threads);
    std::vector<int> runs(97);
    std::vector<int> expected(97);
    for (int64_t loop = 0; loop < 3000; ++loop) {
      const int64_t num_tasks = loop * 31 % 98;
      pool.parallel_for(num_tasks, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });
      for (int64_t i = 0; i < num_tasks; ++i) ++expected[static_cast<size_t>(i)];
      ASSERT_EQ(runs, expected) << "loop " << loop << " on " << num_threads << " threads";
    }
  }
}

TEST(ThreadPool, WorkersThatFellAsleepWakeUp) {
  ThreadPool pool(2);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic<int> met{0};
    // Each task waits for the other, so both threads must take part.
    pool.parallel_for(2, [&](int64_t) {
      ++met;
      while (met.load() < 2) std::this_thread::yield();
    });
    EXPECT_EQ(met.load(), 2);
  }
}

TEST(ThreadPool, ATaskMayUseAPoolOfItsOwn) {
  ThreadPool outer(2);
  std::vector<int> runs(40);
  outer.parallel_for(4, [&](int64_t i) {
    ThreadPool inner(2);
    inner.parallel_for(10, [&](int64_t j) { ++runs[static_cast<size_t>(i * 10 + j)]; });
  });
  EXPECT_EQ(runs, std::vector<int>(40, 1));
}

TEST(DefaultNumThreads, HonoursOmpNumThreadsWhenItIsAPositiveNumber) {
  const char* before = std::getenv("OMP_NUM_THREADS");
  const std::string kept = before ? before : "";
  unsetenv("OMP_NUM_THREADS");
  const int cores = default_num_threads();
  EXPECT_GE(cores, 1);
  setenv("OMP_NUM_THREADS", "7", 1);
  EXPECT_EQ(default_num_threads(), 7);
  for (const char* nonsense : {"0", "-3", "many"}) {
    setenv("OMP_NUM_THREADS", nonsense, 1);
    EXPECT_EQ(default_num_threads(), cores) << nonsense;
  }
  if (before) {
    setenv("OMP_NUM_THREADS", kept.c_str(), 1);
  } else {
    unsetenv("OMP_NUM_THREADS");
  }
}

}  // namespace
}  // namespace quire
