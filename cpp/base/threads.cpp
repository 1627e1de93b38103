// The thread pool; see threads.h. num_unclaimed_ (release/acquire) publishes a loop and counts down as tasks are
// claimed, num_unfinished_ (release/acquire) returns the results. A claim keeps the loop alive, so a late worker that
// finds the count of a newer loop simply claims a task of that one.
#include "base/threads.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace quire {
namespace {

void spin_pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Long enough to bridge the gap between two loops of a step, short enough not to burn a core between requests.
constexpr auto kSpinTime = std::chrono::microseconds(200);
constexpr int kPausesPerClockRead = 64;

int read_topology(int cpu, const char* name) {
  std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/" + name);
  int value = -1;
  file >> value;
  return file ? value : -1;
}

int num_physical_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
    return std::max(1u, std::thread::hardware_concurrency());
  }
  std::set<std::pair<int, int>> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const int core = read_topology(cpu, "core_id");
    if (core < 0) return CPU_COUNT(&allowed);
    cores.emplace(read_topology(cpu, "physical_package_id"), core);
  }
  return cores.empty() ? 1 : static_cast<int>(cores.size());
}

}  // namespace

int default_num_threads() {
  if (const char* value = std::getenv("OMP_NUM_THREADS")) {
    const int requested = std::atoi(value);
    if (requested > 0) return requested;
  }
  return num_physical_cores();
}

ThreadPool::ThreadPool(int num_threads) {
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this] { worker_loop(); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t num_tasks, TaskFunction function, const void* context) {
  function_ = function;
  context_ = context;
  num_tasks_ = num_tasks;
  num_unfinished_.store(num_tasks, std::memory_order_relaxed);
  bool wake = false;
  {
    // Published under the lock so that a worker about to sleep either sees it or is counted as sleeping.
    const std::lock_guard lock(mutex_);
    num_unclaimed_.store(num_tasks, std::memory_order_release);
    wake = num_sleeping_ > 0;
  }
  if (wake) wake_.notify_all();
  while (run_one_task()) {
  }
  int spins = 0;
  while (num_unfinished_.load(std::memory_order_acquire) != 0) {
    spin_pause();
    // On an oversubscribed machine the worker we wait for may need this very core.
    if (++spins % 4096 == 0) std::this_thread::yield();
  }
}

// Claims the next task of the current loop and runs it; false when none is left.
bool ThreadPool::run_one_task() {
  int64_t unclaimed = num_unclaimed_.load(std::memory_order_relaxed);
  do {
    if (unclaimed == 0) return false;
  } while (!num_unclaimed_.compare_exchange_weak(unclaimed, unclaimed - 1, std::memory_order_acq_rel,
                                                 std::memory_order_relaxed));
  function_(context_, num_tasks_ - unclaimed);
  num_unfinished_.fetch_sub(1, std::memory_order_release);
  return true;
}

void ThreadPool::worker_loop() {
  const auto has_work = [this] { return num_unclaimed_.load(std::memory_order_relaxed) != 0; };
  for (;;) {
    while (run_one_task()) {
    }
    const auto spin_end = std::chrono::steady_clock::now() + kSpinTime;
    while (!has_work()) {
      for (int i = 0; i < kPausesPerClockRead && !has_work(); ++i) spin_pause();
      if (std::chrono::steady_clock::now() < spin_end) continue;
      std::unique_lock lock(mutex_);
      ++num_sleeping_;
      wake_.wait(lock, [&] { return stop_ || has_work(); });
      --num_sleeping_;
      if (stop_) return;
    }
  }
}

}  // namespace quire
