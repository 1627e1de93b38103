// The thread pool; see threads.h. The ranges of the shares (release/acquire) publish a loop and shrink as tasks are
// claimed, num_unfinished_ (release/acquire) returns the results. A claim keeps the loop alive, so a late worker that
// finds a range of a newer loop simply claims a task of that one.
#include "base/threads.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>
#include <utility>

#include "base/check.h"

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

ThreadPool::ThreadPool(int num_threads) : shares_(static_cast<size_t>(std::max(1, num_threads))) {
  for (size_t i = 1; i < shares_.size(); ++i) workers_.emplace_back([this, i] { worker_loop(i); });
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
  QUIRE_CHECK(num_tasks <= UINT32_MAX, num_tasks, " tasks");
  function_ = function;
  context_ = context;
  num_unfinished_.store(num_tasks, std::memory_order_relaxed);
  const auto num_threads = shares_.size(), count = static_cast<size_t>(num_tasks);
  bool wake = false;
  {
    // Published under the lock so that a worker about to sleep either sees it or is counted as sleeping.
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < num_threads; ++i) {
      const uint64_t begin = count * i / num_threads, end = count * (i + 1) / num_threads;
      shares_[i].range.store(begin << 32 | end, std::memory_order_release);
    }
    num_loops_.fetch_add(1, std::memory_order_release);
    wake = num_sleeping_ > 0;
  }
  if (wake) wake_.notify_all();
  run_tasks(0);
  int spins = 0;
  while (num_unfinished_.load(std::memory_order_acquire) != 0) {
    spin_pause();
    // On an oversubscribed machine the worker we wait for may need this very core.
    if (++spins % 4096 == 0) std::this_thread::yield();
  }
}

void ThreadPool::run_claimed(uint64_t task) {
  function_(context_, static_cast<int64_t>(task));
  num_unfinished_.fetch_sub(1, std::memory_order_release);
}

bool ThreadPool::run_first(Share& share) {
  uint64_t range = share.range.load(std::memory_order_relaxed);
  do {
    if (range >> 32 >= (range & UINT32_MAX)) return false;
  } while (!share.range.compare_exchange_weak(range, range + (uint64_t{1} << 32), std::memory_order_acq_rel,
                                              std::memory_order_relaxed));
  run_claimed(range >> 32);
  return true;
}

bool ThreadPool::run_last(Share& share) {
  uint64_t range = share.range.load(std::memory_order_relaxed);
  do {
    if (range >> 32 >= (range & UINT32_MAX)) return false;
  } while (!share.range.compare_exchange_weak(range, range - 1, std::memory_order_acq_rel, std::memory_order_relaxed));
  run_claimed((range & UINT32_MAX) - 1);
  return true;
}

// All tasks that are there to claim: the thread's own, then those of the threads after it.
void ThreadPool::run_tasks(size_t thread) {
  while (run_first(shares_[thread])) {
  }
  for (size_t i = 1; i < shares_.size(); ++i) {
    while (run_last(shares_[(thread + i) % shares_.size()])) {
    }
  }
}

void ThreadPool::worker_loop(size_t thread) {
  uint64_t seen = 0;
  const auto has_work = [&] { return num_loops_.load(std::memory_order_acquire) != seen; };
  for (;;) {
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
    seen = num_loops_.load(std::memory_order_acquire);
    run_tasks(thread);
  }
}

}  // namespace quire
