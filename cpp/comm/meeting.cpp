// Meetings; see meeting.h. The last to come publishes the next number (release), which everybody else reads (acquire):
// what was written before a meeting is seen after it.
#include "comm/meeting.h"

#include <chrono>
#include <thread>

namespace quire {
namespace {

using Clock = std::chrono::steady_clock;

// Longer than the ranks of an idle machine drift apart in a layer. Where there are others who want the core, sleeping
// is the quicker way: who is woken comes soon, who yields comes last.
constexpr auto kSpinTime = std::chrono::microseconds(30);

}  // namespace

void Meeting::arrive(int member, const char* what) {
  if (come(member, what)) proceed();
}

void Meeting::proceed() {
  arrived_.store(0, std::memory_order_relaxed);
  {
    const std::lock_guard lock(mutex_);
    number_.fetch_add(1, std::memory_order_release);
  }
  changed_.notify_all();
}

bool Meeting::come(int member, const char* what) {
  throw_if_aborted();
  const uint64_t meeting = number_.load(std::memory_order_relaxed);
  const uint32_t everyone = (uint32_t{1} << num_members_) - 1, own = uint32_t{1} << member;
  if ((arrived_.fetch_or(own, std::memory_order_acq_rel) | own) == everyone) return true;
  if (spin(meeting)) return false;
  std::unique_lock lock(mutex_);
  const auto is_over = [&] { return passed(meeting) || aborted_.load(); };
  const bool in_time = changed_.wait_for(lock, std::chrono::duration<double>(time_limit_), is_over);
  if (passed(meeting)) return false;
  lock.unlock();
  if (in_time) throw_if_aborted();
  throw_late(everyone & ~arrived_.load(), what);
}

bool Meeting::spin(uint64_t meeting) const {
  static const auto num_cores = static_cast<int>(std::thread::hardware_concurrency());
  if (num_members_ > num_cores) return passed(meeting);
  const auto end = Clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 64; ++i) {
      if (passed(meeting)) return true;
    }
  } while (!aborted_.load(std::memory_order_relaxed) && Clock::now() < end);
  return passed(meeting);
}

void Meeting::throw_late(uint32_t missing, const char* what) {
  std::string names;
  for (int member = 0; member < num_members_; ++member) {
    if ((missing >> member & 1u) != 0) names += str_cat(names.empty() ? "" : ", ", member);
  }
  // Nobody is missing: the last to come has not let the others go on.
  const std::string who = names.empty() ? "a call of all ranks did not come back from "
                                        : str_cat("rank ", names, " of ", num_members_, " did not come to ");
  const std::string why = str_cat(who, what, " within ", time_limit_, " s (collective_timeout)");
  abort(why);
  throw MissingRank(why);
}

void Meeting::throw_if_aborted() {
  if (!aborted_.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(mutex_);
  throw CollectiveAborted(str_cat("given up: ", why_));
}

void Meeting::abort(const std::string& why) {
  {
    const std::lock_guard lock(mutex_);
    if (aborted_.load()) return;
    why_ = why;
    aborted_.store(true, std::memory_order_release);
  }
  changed_.notify_all();
}

void Meeting::reset() {
  const std::lock_guard lock(mutex_);
  arrived_.store(0);
  aborted_.store(false);
  why_.clear();
}

}  // namespace quire
