// Threads of ranks, and what is told of those that fail; see rank_threads.h.
//
// A rank's state is held by its thread too: one that hangs keeps its own memory until it comes back, if it ever does,
// and nothing else waits for it.
#include "engine/rank_threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "base/check.h"

namespace quire {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kSpinTime = std::chrono::microseconds(50);
constexpr double kGraceSeconds = 2.0;  // for ranks that were told to give up, after one was waited for in vain

// Until done(), at most kSpinTime.
template <typename Done>
bool spin(const Done& done) {
  const auto end = Clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
    }
  } while (Clock::now() < end);
  return done();
}

// `error` again, with `prefix` before its message.
[[noreturn]] void rethrow_with(const std::string& prefix, const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const MissingRank&) {
    throw;  // names the rank itself
  } catch (const OutOfMemory& e) {
    throw OutOfMemory(prefix + e.what());
  } catch (const DeviceError& e) {
    throw DeviceError(prefix + e.what());
  } catch (const NotSupported& e) {
    throw NotSupported(prefix + e.what());
  } catch (const InvalidArgument& e) {
    throw InvalidArgument(prefix + e.what());
  } catch (const std::logic_error& e) {
    throw InternalError(prefix + e.what());
  } catch (const std::exception& e) {
    throw std::runtime_error(prefix + e.what());
  }
}

bool is_abort(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const CollectiveAborted&) {
    return true;
  } catch (...) {
    return false;
  }
}

std::string message_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "unknown error";
  }
}

}  // namespace

class RankThreads::Thread {
 public:
  Thread(std::shared_ptr<CommunicatorGroup> communicators, int rank, std::shared_ptr<void> worker) : state_(new State) {
    state_->communicators = std::move(communicators);
    state_->rank = rank;
    state_->worker = std::move(worker);
    thread_ = std::thread([state = state_] { state->serve(); });
  }
  // A rank that hangs is not waited for.
  ~Thread() {
    {
      const std::lock_guard lock(state_->mutex);
      state_->stop = true;
    }
    state_->changed.notify_all();
    if (is_idle()) {
      thread_.join();
    } else {
      thread_.detach();
    }
  }
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;

  void post(VerbFunction function, const void* verb) {
    {
      const std::lock_guard lock(state_->mutex);
      state_->function = function;
      state_->verb = verb;
      state_->error = nullptr;
      state_->num_posted.fetch_add(1, std::memory_order_release);
    }
    state_->changed.notify_all();
  }
  bool is_idle() const { return state_->is_idle(); }
  bool wait_until(Clock::time_point deadline) const {
    if (spin([&] { return is_idle(); })) return true;
    std::unique_lock lock(state_->mutex);
    return state_->changed.wait_until(lock, deadline, [&] { return is_idle(); });
  }
  // Of the last verb; the thread is idle.
  const std::exception_ptr& error() const { return state_->error; }

 private:
  // Destroyed in this order reversed: a worker names the communicators.
  struct State {
    std::shared_ptr<CommunicatorGroup> communicators;
    int rank = 0;
    std::shared_ptr<void> worker;
    std::mutex mutex;
    std::condition_variable changed;
    std::atomic<uint64_t> num_posted{0}, num_done{0};
    bool stop = false;  // guarded by mutex
    VerbFunction function = nullptr;
    const void* verb = nullptr;
    std::exception_ptr error;

    bool is_idle() const { return num_done.load(std::memory_order_acquire) == num_posted.load(); }
    void serve() {
      for (;;) {
        spin([&] { return !is_idle(); });
        {
          std::unique_lock lock(mutex);
          changed.wait(lock, [&] { return stop || !is_idle(); });
          if (stop) return;
        }
        try {
          function(verb, worker.get());
        } catch (...) {
          error = std::current_exception();
          communicators->abort(str_cat("rank ", rank, " failed: ", message_of(error)));
        }
        {
          const std::lock_guard lock(mutex);
          num_done.fetch_add(1, std::memory_order_release);
        }
        changed.notify_all();
      }
    }
  };

  std::shared_ptr<State> state_;
  std::thread thread_;
};

RankThreads::RankThreads(std::shared_ptr<CommunicatorGroup> communicators, double time_limit)
    : communicators_(std::move(communicators)), time_limit_(time_limit) {}

RankThreads::~RankThreads() = default;

void RankThreads::add(std::shared_ptr<void> worker) {
  threads_.push_back(std::make_unique<Thread>(communicators_, num_ranks(), std::move(worker)));
}

void RankThreads::run(const char* name, VerbFunction function, const void* verb, void* first) {
  if (is_hung_) throw_hung(name);
  for (const auto& thread : threads_) thread->post(function, verb);
  std::exception_ptr own_error;
  try {
    function(verb, first);
  } catch (...) {
    own_error = std::current_exception();
    communicators_->abort(str_cat("rank 0 failed: ", message_of(own_error)));
  }
  bool waited_in_vain = false;
  if (own_error != nullptr) {
    try {
      std::rethrow_exception(own_error);
    } catch (const MissingRank&) {
      waited_in_vain = true;
    } catch (...) {
    }
  }
  if (!wait_for_threads(waited_in_vain ? std::min(kGraceSeconds, time_limit_) : time_limit_)) {
    is_hung_ = true;
    communicators_->abort("a rank hangs");
    throw_hung(name);
  }
  rethrow_first(name, own_error);
}

bool RankThreads::wait_for_threads(double time_limit) {
  const auto deadline =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(time_limit));
  bool all_came = true;
  for (const auto& thread : threads_) all_came = thread->wait_until(deadline) && all_came;
  return all_came;
}

void RankThreads::throw_hung(const char* name) {
  std::string ranks;
  for (size_t i = 0; i < threads_.size(); ++i) {
    if (!threads_[i]->is_idle()) ranks += str_cat(ranks.empty() ? "" : ", ", i + 1);
  }
  throw DeviceError(str_cat("rank ", ranks.empty() ? "of the group" : ranks, " of ", num_ranks(),
                            " did not come back from ", name, " within the time limit of ", time_limit_,
                            " s (collective_timeout). It is left to itself; make a new engine."));
}

// Of several errors the one that the others followed from.
void RankThreads::rethrow_first(const char* name, std::exception_ptr own_error) {
  std::vector<std::exception_ptr> errors = {std::move(own_error)};
  for (const auto& thread : threads_) errors.push_back(thread->error());
  const auto failed = [](const std::exception_ptr& error) { return error != nullptr; };
  if (std::ranges::none_of(errors, failed)) return;
  communicators_->reset();
  auto shown = std::ranges::find_if(errors, [&](const auto& error) { return failed(error) && !is_abort(error); });
  if (shown == errors.end()) shown = std::ranges::find_if(errors, failed);
  rethrow_with(str_cat("rank ", shown - errors.begin(), " of ", num_ranks(), " failed in ", name, ": "), *shown);
}

}  // namespace quire
