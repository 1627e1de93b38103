// Where the threads of a group meet: a barrier with a time limit, that tells who is missing and can be given up.
//
// Any number of threads, each with a number of its own. Knows nothing of what they do between meetings.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>

#include "comm/communicator.h"

namespace quire {

class Meeting {
 public:
  Meeting(int num_members, double time_limit) : num_members_(num_members), time_limit_(time_limit) {}

  // Returns when all members have come. `what` is for the message: throws MissingRank that names the members who did
  // not come within the time limit, which aborts the meeting, or CollectiveAborted.
  void arrive(int member, const char* what);
  // In two: true for the last to come, for whom the others wait until it calls proceed().
  bool come(int member, const char* what);
  void proceed();
  void abort(const std::string& why);
  // CollectiveAborted after abort().
  void throw_if_aborted();
  // Nobody is in arrive().
  void reset();

 private:
  bool passed(uint64_t meeting) const { return number_.load(std::memory_order_acquire) != meeting; }
  bool spin(uint64_t meeting) const;
  [[noreturn]] void throw_late(uint32_t missing, const char* what);

  const int num_members_;
  const double time_limit_;
  alignas(64) std::atomic<uint32_t> arrived_{0};  // a bit a member
  alignas(64) std::atomic<uint64_t> number_{0};   // of meetings that have taken place
  std::atomic<bool> aborted_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string why_;  // guarded by mutex_
};

}  // namespace quire
