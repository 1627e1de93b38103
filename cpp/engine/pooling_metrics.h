// Counts texts by how they ended, and sorts their sizes and times into buckets; request_metrics.h for pooling.
//
// Decides: which of vLLM's figures there are where nothing is generated. Does not know: clocks, the queue. Engine
// thread.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/figures.h"
#include "quire/pooling_types.h"
#include "quire/types.h"

namespace quire {

class PoolingMetrics {
 public:
  explicit PoolingMetrics(int64_t max_model_len);

  void add_step(int64_t num_tokens) { observe(step_tokens_, static_cast<double>(num_tokens)); }
  // Computed or cancelled.
  void add_finished(const PoolingOutput& output);
  // Counters and gauges of PoolingStats, and what was collected here.
  std::vector<Metric> metrics(const PoolingStats& stats) const;

 private:
  Metric step_tokens_, prompt_tokens_, latency_, queue_time_, inference_time_;
  FinishedCounts finished_ = {};
};

}  // namespace quire
