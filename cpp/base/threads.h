// A pool of threads for data-parallel loops.
//
// parallel_for gives each thread a share of neighbouring tasks, the same share of every loop, so that what one loop
// left in a core's caches is there for the next; a thread that is done takes tasks from the ends of other shares. Which
// thread runs a task is not fixed, so a task's result must not depend on it. The calling thread works too, and waits
// only for tasks that a worker has begun: on a busy machine a worker that has no core costs nothing. One parallel_for
// at a time per pool (the caller holds the engine). Workers spin for a short while after a loop (a step has hundreds of
// loops a few tens of microseconds apart) and then sleep, so an idle engine costs nothing.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace quire {

// Physical cores this process may use; OMP_NUM_THREADS, when set to a positive number, wins.
int default_num_threads();

class ThreadPool {
 public:
  // num_threads counts the caller: 1 means no workers.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(i) for every i in [0, num_tasks) and returns when all are done. Tasks must not throw.
  template <typename Task>
  void parallel_for(int64_t num_tasks, const Task& task) {
    if (num_tasks <= 0) return;
    if (num_tasks == 1 || workers_.empty()) {
      for (int64_t i = 0; i < num_tasks; ++i) task(i);
      return;
    }
    run(num_tasks, [](const void* context, int64_t i) { (*static_cast<const Task*>(context))(i); }, &task);
  }

 private:
  using TaskFunction = void (*)(const void*, int64_t);
  // The tasks [begin, end) of one thread that nobody has claimed, begin in the upper half. The owner claims the first
  // one, others the last.
  struct alignas(64) Share {
    std::atomic<uint64_t> range{0};
  };

  void run(int64_t num_tasks, TaskFunction function, const void* context);
  void worker_loop(size_t thread);
  void run_tasks(size_t thread);
  bool run_first(Share& share);
  bool run_last(Share& share);
  void run_claimed(uint64_t task);

  std::vector<std::thread> workers_;
  std::vector<Share> shares_;  // of the caller, then of each worker
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;     // guarded by mutex_
  int num_sleeping_ = 0;  // guarded by mutex_
  // The current loop. Written by the caller while no task is unfinished; read only by a thread that has claimed a task.
  TaskFunction function_ = nullptr;
  const void* context_ = nullptr;
  alignas(64) std::atomic<uint64_t> num_loops_{0};
  alignas(64) std::atomic<int64_t> num_unfinished_{0};
};

}  // namespace quire
