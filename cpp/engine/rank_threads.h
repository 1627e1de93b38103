// Threads of ranks that do one thing together: a verb on all of them, and what is told of those that fail or hang.
//
// Decides: that a verb returns when all ranks have done it, that what goes wrong in one is thrown with its number once
// all others have given up their part, and that a rank that does not come back within the time limit is left to itself.
// Does not know: what a worker is (RankGroup does), what a verb computes. The first rank is the caller's thread. Engine
// thread only.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

#include "comm/communicator.h"

namespace quire {

class RankThreads {
 public:
  using VerbFunction = void (*)(const void* verb, void* worker);

  RankThreads(std::shared_ptr<CommunicatorGroup> communicators, double time_limit);
  ~RankThreads();
  RankThreads(const RankThreads&) = delete;
  RankThreads& operator=(const RankThreads&) = delete;

  // The thread of the next rank, from 1 on. A rank that hangs keeps what `worker` owns until it comes back.
  void add(std::shared_ptr<void> worker);
  // function(verb, worker) of every rank, `first` being the caller's. `name` is for messages.
  void run(const char* name, VerbFunction function, const void* verb, void* first);

  int32_t num_ranks() const { return static_cast<int32_t>(threads_.size()) + 1; }
  // A rank did not come back: no more can be run.
  bool is_hung() const { return is_hung_; }

 private:
  class Thread;

  bool wait_for_threads(double time_limit);
  [[noreturn]] void throw_hung(const char* name);
  void rethrow_first(const char* name, std::exception_ptr own_error);

  std::shared_ptr<CommunicatorGroup> communicators_;
  std::vector<std::unique_ptr<Thread>> threads_;
  double time_limit_ = 0.0;
  bool is_hung_ = false;
};

}  // namespace quire
