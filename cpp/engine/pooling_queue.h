// Which texts the next step computes: those of one way of pooling, longest first, within the budgets. Pure.
//
// Decides: order and batches. Texts of like length share a step, so that no thread waits for one long text at its end;
// a text that has waited for kPatience steps goes first, however short. Does not know: tokens, devices. Verb: plan.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "quire/pooling_types.h"

namespace quire {

// What texts of one step have in common.
struct PoolingKind {
  PoolingType type = PoolingType::last;
  bool with_head = true;
  auto operator<=>(const PoolingKind&) const = default;
};

class PoolingQueue {
 public:
  PoolingQueue(int64_t max_num_batched_tokens, int64_t max_num_seqs)
      : max_tokens_(max_num_batched_tokens), max_seqs_(max_num_seqs) {}

  void add(uint64_t id, int64_t num_tokens, PoolingKind kind);
  // False when it does not wait.
  bool remove(uint64_t id);
  // Takes the texts of the next step out; empty when none wait.
  std::vector<uint64_t> plan();
  size_t size() const { return waiting_.size(); }

  static constexpr int64_t kPatience = 64;  // steps

 private:
  struct Waiting {
    int64_t num_tokens;
    PoolingKind kind;
    int64_t since_step;
  };

  int64_t max_tokens_, max_seqs_;
  int64_t num_steps_ = 0;
  std::map<uint64_t, Waiting> waiting_;                                      // oldest first
  std::map<PoolingKind, std::set<std::pair<int64_t, uint64_t>>> by_length_;  // (-num_tokens, id)
};

}  // namespace quire
