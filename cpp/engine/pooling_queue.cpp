// Batches of texts; see pooling_queue.h.
#include "engine/pooling_queue.h"

#include "base/check.h"

namespace quire {

void PoolingQueue::add(uint64_t id, int64_t num_tokens, PoolingKind kind) {
  const bool inserted = waiting_.emplace(id, Waiting{num_tokens, kind, num_steps_}).second;
  QUIRE_CHECK(inserted, "text ", id, " waits twice");
  by_length_[kind].emplace(-num_tokens, id);
}

bool PoolingQueue::remove(uint64_t id) {
  const auto found = waiting_.find(id);
  if (found == waiting_.end()) return false;
  const auto of_kind = by_length_.find(found->second.kind);
  of_kind->second.erase({-found->second.num_tokens, id});
  if (of_kind->second.empty()) by_length_.erase(of_kind);
  waiting_.erase(found);
  return true;
}

std::vector<uint64_t> PoolingQueue::plan() {
  std::vector<uint64_t> ids;
  if (waiting_.empty()) return ids;
  ++num_steps_;
  const auto& [oldest_id, oldest] = *waiting_.begin();
  const auto& texts = by_length_.at(oldest.kind);
  int64_t budget = max_tokens_;
  if (num_steps_ - oldest.since_step > kPatience) {
    ids.push_back(oldest_id);
    budget -= oldest.num_tokens;
  }
  for (auto next = texts.begin(); next != texts.end() && static_cast<int64_t>(ids.size()) < max_seqs_;) {
    const int64_t num_tokens = -next->first;
    if (num_tokens > budget && !ids.empty()) {
      if (budget <= 0) break;
      next = texts.lower_bound({-budget, 0});  // the longest that still fits
      continue;
    }
    if (ids.empty() || next->second != ids.front()) {
      ids.push_back(next->second);
      budget -= num_tokens;
    }
    ++next;
  }
  for (const uint64_t id : ids) remove(id);
  return ids;
}

}  // namespace quire
