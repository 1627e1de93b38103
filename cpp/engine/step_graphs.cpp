// Buckets; see step_graphs.h.
#include "engine/step_graphs.h"

#include <algorithm>

namespace quire {

StepGraphs::StepGraphs(std::vector<int32_t> sizes, int64_t max_num_seqs, int64_t max_kv_len)
    : sizes_(std::move(sizes)), max_kv_len_(max_kv_len) {
  // The largest batch has a bucket of its own size where the next one would be larger than any batch.
  for (int32_t& size : sizes_) size = static_cast<int32_t>(std::min<int64_t>(size, max_num_seqs));
  std::ranges::sort(sizes_);
  const auto repeated = std::ranges::unique(sizes_);
  sizes_.erase(repeated.begin(), repeated.end());
}

std::vector<int32_t> StepGraphs::default_sizes() {
  std::vector<int32_t> sizes = {1, 2, 4};
  for (int32_t size = 8; size <= 256; size += 8) sizes.push_back(size);
  return sizes;
}

bool StepGraphs::takes(const StepShape& step) const {
  return step.feeds_itself && !sizes_.empty() && step.num_seqs <= sizes_.back() && step.max_kv_len <= max_kv_len_;
}

StepShape StepGraphs::bucket(const StepShape& step) const {
  if (!takes(step)) return step;
  StepShape shape = step;
  shape.num_seqs = *std::ranges::lower_bound(sizes_, step.num_seqs);
  shape.num_tokens = shape.num_samples = shape.num_seqs;
  shape.max_kv_len = max_kv_len_;
  return shape;
}

Graph* StepGraphs::find(const StepShape& bucket) const {
  const auto found = graphs_.find({bucket.num_seqs, bucket.logprobs_stride});
  return found == graphs_.end() ? nullptr : found->second.get();
}

void StepGraphs::insert(const StepShape& bucket, std::unique_ptr<Graph> graph) {
  graphs_[{bucket.num_seqs, bucket.logprobs_stride}] = std::move(graph);
}

void StepGraphs::disable() {
  sizes_.clear();
  graphs_.clear();
}

}  // namespace quire
