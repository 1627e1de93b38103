// The captured decode steps: one graph a bucket of batch size and width of log-probabilities. Verb: forward.
//
// Decides: which steps are replayed, and with which graph. A graph is captured when its bucket is first met, so
// starting costs nothing for sizes that never come. Does not know: what is captured.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "device/device.h"
#include "engine/row_state.h"

namespace quire {

class StepGraphs {
 public:
  // `sizes`: batch sizes, none for no graphs at all; a step with a longer sequence than `max_kv_len` is not replayed.
  StepGraphs(std::vector<int32_t> sizes, int64_t max_num_seqs, int64_t max_kv_len);

  // vLLM's: 1, 2, 4 and the multiples of 8 up to 256.
  static std::vector<int32_t> default_sizes();

  // The shape of the graph that takes this step, or the step's own when none does.
  StepShape bucket(const StepShape& step) const;
  bool takes(const StepShape& step) const;
  Graph* find(const StepShape& bucket) const;
  void insert(const StepShape& bucket, std::unique_ptr<Graph> graph);
  void clear() { graphs_.clear(); }
  // No graphs from now on, after one that could not be captured.
  void disable();
  size_t size() const { return graphs_.size(); }

 private:
  std::vector<int32_t> sizes_;  // ascending
  int64_t max_kv_len_;
  std::map<std::pair<int64_t, int32_t>, std::unique_ptr<Graph>> graphs_;  // (sequences, logprobs_stride)
};

}  // namespace quire
