// Collectives between threads: sums in the order of the ranks, who is missing, and what an aborted group says.
#include "comm/loopback.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/threads.h"

namespace quire {
namespace {

// Runs body(rank) on a thread a rank; what it throws is its message.
std::vector<std::string> run_ranks(int num_ranks, const std::function<void(int)>& body) {
  std::vector<std::string> errors(static_cast<size_t>(num_ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < num_ranks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        body(rank);
      } catch (const std::exception& error) {
        errors[static_cast<size_t>(rank)] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

// Numbers whose sum depends on its order.
std::vector<float> random_numbers(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> exponent(-12.0f, 12.0f);
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& number : numbers) number = std::exp2(exponent(random)) * (random() % 2 == 0 ? 1.0f : -1.0f);
  return numbers;
}

class Loopback : public ::testing::TestWithParam<int> {
 protected:
  const int num_ranks_ = GetParam();
  const std::unique_ptr<CommunicatorGroup> group_ = make_loopback_group(num_ranks_, 60.0);
};

TEST_P(Loopback, SumsInTheOrderOfTheRanks) {
  for (const int64_t count : {1, 15, 16, 17, 4096, 70001}) {
    std::vector<std::vector<float>> partials, outs, in_place;
    for (int rank = 0; rank < num_ranks_; ++rank) {
      partials.push_back(random_numbers(count, 10 + static_cast<uint32_t>(rank)));
      outs.push_back(random_numbers(count, 1));
      in_place.push_back(partials.back());
    }
    std::vector<float> sum = partials[0], added = outs[0];
    for (size_t i = 0; i < sum.size(); ++i) {
      for (size_t rank = 1; rank < partials.size(); ++rank) sum[i] += partials[rank][i];
      added[i] += sum[i];
    }
    const std::vector<std::string> errors = run_ranks(num_ranks_, [&](int rank) {
      ThreadPool pool(1 + rank % 2);
      const Stream stream = {.handle = &pool};
      const auto own = static_cast<size_t>(rank);
      group_->rank(rank).all_reduce(
          {.partial = partials[own].data(), .out = outs[own].data(), .rows = 1, .dim = count, .accumulate = true},
          stream);
      group_->rank(rank).all_reduce(
          {.partial = in_place[own].data(), .out = in_place[own].data(), .rows = 1, .dim = count}, stream);
    });
    for (size_t rank = 0; rank < partials.size(); ++rank) {
      EXPECT_EQ(errors[rank], "");
      EXPECT_EQ(outs[rank], added) << count << " elements, rank " << rank;  // exact
      EXPECT_EQ(in_place[rank], sum) << count << " elements, rank " << rank;
    }
  }
}

TEST_P(Loopback, GathersColumnsOnTheFirstRank) {
  constexpr int64_t kRows = 37, kGap = 5;
  int64_t total = 0;
  std::vector<int64_t> columns, first;
  for (int rank = 0; rank < num_ranks_; ++rank) {
    columns.push_back(101 + rank);
    first.push_back(total);
    total += columns.back();
  }
  constexpr float kUntouched = -7.0f;
  std::vector<float> out(static_cast<size_t>(kRows * (total + kGap)), kUntouched);
  run_ranks(num_ranks_, [&](int rank) {
    ThreadPool pool(2);
    const auto own = static_cast<size_t>(rank);
    std::vector<float> part;
    for (int64_t i = 0; i < kRows * columns[own]; ++i) part.push_back(static_cast<float>(1000 * rank + i));
    group_->rank(rank).gather_columns({.part = part.data(),
                                       .rows = kRows,
                                       .columns = columns[own],
                                       .first_column = first[own],
                                       .out = rank == 0 ? out.data() : nullptr,
                                       .out_stride = rank == 0 ? total + kGap : 0},
                                      {.handle = &pool});
  });
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t column = 0; column < total + kGap; ++column) {
      float expected = kUntouched;
      for (size_t rank = 0; rank < columns.size(); ++rank) {
        if (column < first[rank] || column >= first[rank] + columns[rank]) continue;
        expected = static_cast<float>(1000 * static_cast<int64_t>(rank) + row * columns[rank] + column - first[rank]);
      }
      ASSERT_EQ(out[static_cast<size_t>(row * (total + kGap) + column)], expected) << row << ", " << column;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, Loopback, ::testing::Values(1, 2, 3, 4, 8));

TEST(LoopbackFailures, ARankThatDoesNotComeIsNamed) {
  const auto group = make_loopback_group(3, 0.05);
  std::vector<float> data(3, 1.0f);
  const std::vector<std::string> errors = run_ranks(3, [&](int rank) {
    if (rank == 1) return;
    float* own = &data[static_cast<size_t>(rank)];
    group->rank(rank).all_reduce({.partial = own, .out = own, .rows = 1, .dim = 1}, {});
  });
  EXPECT_EQ(errors[1], "");
  // One of the two noticed first, and told the other.
  const std::string told = "rank 1 of 3 did not come to all_reduce within 0.05 s (collective_timeout)";
  EXPECT_TRUE(errors[0].find(told) != std::string::npos) << errors[0];
  EXPECT_TRUE(errors[2].find(told) != std::string::npos) << errors[2];
  EXPECT_TRUE(errors[0] == told || errors[2] == told);
}

TEST(LoopbackFailures, AnAbortedGroupFailsUntilItIsReset) {
  const auto group = make_loopback_group(2, 60.0);
  std::atomic<bool> waits{false};
  std::vector<float> data(2, 1.0f);
  const auto reduce = [&](int rank) {
    float* own = &data[static_cast<size_t>(rank)];
    group->rank(rank).all_reduce({.partial = own, .out = own, .rows = 1, .dim = 1}, {});
  };
  std::vector<std::string> errors = run_ranks(2, [&](int rank) {
    if (rank == 0) {
      waits = true;
      reduce(0);
    } else {
      while (!waits) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // it sleeps by now, or will find the abort
      group->abort("rank 1 failed: out of ideas");
    }
  });
  EXPECT_EQ(errors[0], "given up: rank 1 failed: out of ideas");
  EXPECT_THROW(reduce(1), CollectiveAborted);
  group->reset();
  errors = run_ranks(2, reduce);
  EXPECT_EQ(errors, (std::vector<std::string>{"", ""}));
  EXPECT_EQ(data, (std::vector<float>{2.0f, 2.0f}));
}

TEST(LoopbackFailures, ShapesThatDiffer) {
  const auto group = make_loopback_group(2, 0.05);
  std::vector<float> data(4, 1.0f);
  const std::vector<std::string> errors = run_ranks(2, [&](int rank) {
    float* own = &data[2 * static_cast<size_t>(rank)];
    group->rank(rank).all_reduce({.partial = own, .out = own, .rows = 1, .dim = 1 + rank}, {});
  });
  for (const std::string& error : errors) EXPECT_NE(error.find("reduces 1 rows of"), std::string::npos) << error;
}

}  // namespace
}  // namespace quire
