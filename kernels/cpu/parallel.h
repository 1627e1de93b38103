// How a launcher splits its work: through the pool that the stream names, or in place when starting threads costs more.
//
// The result never depends on the choice. Lambdas given here hold no vector code; they call a function that does.
#pragma once

#include <cstdint>

#include "base/threads.h"
#include "params/stream.h"

namespace quire::cpu {

inline ThreadPool* pool_of(Stream stream) { return static_cast<ThreadPool*>(stream.handle); }

inline int num_threads_of(Stream stream) {
  const ThreadPool* pool = pool_of(stream);
  return pool == nullptr ? 1 : pool->num_threads();
}

// Waking the pool and waiting for it costs 1 to 3 us; below this estimate one thread is quicker.
constexpr double kParallelNs = 6000.0;

// Calls task(i) for i in [0, num_tasks); estimate_ns is the time of all tasks on one thread.
template <typename Task>
void for_each_task(Stream stream, int64_t num_tasks, double estimate_ns, const Task& task) {
  ThreadPool* pool = pool_of(stream);
  if (pool == nullptr || estimate_ns < kParallelNs) {
    for (int64_t i = 0; i < num_tasks; ++i) task(i);
  } else {
    pool->parallel_for(num_tasks, task);
  }
}

// Calls body(begin, end) over ranges that cover [0, count), a few for each thread.
template <typename Body>
void for_each_range(Stream stream, int64_t count, double estimate_ns, const Body& body) {
  const int64_t wanted = static_cast<int64_t>(num_threads_of(stream)) * 4;
  const int64_t num_ranges = count < wanted ? count : wanted;
  for_each_task(stream, num_ranges, estimate_ns,
                [&](int64_t i) { body(count * i / num_ranges, count * (i + 1) / num_ranges); });
}

}  // namespace quire::cpu
