// Meetings in two halves: what the last to come does before the others go on, and when it does not come back.
#include "comm/meeting.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

namespace quire {
namespace {

TEST(Meeting, TheLastToComeLetsTheOthersGoOn) {
  Meeting meeting(3, 60.0);
  int value = 0;  // written by the last to come alone
  for (int turn = 1; turn <= 100; ++turn) {
    std::vector<std::thread> threads;
    std::vector<int> seen(3);
    std::atomic<int> num_last = 0;
    for (int member = 0; member < 3; ++member) {
      threads.emplace_back([&, member] {
        if (meeting.come(member, "turn")) {
          ++num_last;
          value = turn;
          meeting.proceed();
        }
        seen[static_cast<size_t>(member)] = value;
      });
    }
    for (std::thread& thread : threads) thread.join();
    ASSERT_EQ(seen, std::vector<int>(3, turn));
    ASSERT_EQ(num_last, 1);
  }
}

TEST(Meeting, NamesACallThatDoesNotComeBack) {
  Meeting meeting(2, 0.2);
  std::vector<std::string> errors(2);
  std::vector<std::thread> threads;
  std::atomic<int> num_last = 0;
  for (int member = 0; member < 2; ++member) {
    threads.emplace_back([&, member] {
      try {
        num_last += meeting.come(member, "all_reduce") ? 1 : 0;  // and never proceeds
      } catch (const MissingRank& missing) {
        errors[static_cast<size_t>(member)] = missing.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_last, 1);
  EXPECT_EQ(errors[0] + errors[1],
            "a call of all ranks did not come back from all_reduce within 0.2 s (collective_timeout)");
  EXPECT_THROW(meeting.throw_if_aborted(), CollectiveAborted);
}

}  // namespace
}  // namespace quire
