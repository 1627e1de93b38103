// Sequences that fork, and whose tokens the host chooses; see scheduler.h. Verb: commit.
#include <utility>

#include "base/check.h"
#include "engine/scheduler.h"

namespace quire {

void Scheduler::fork(const Sequence& parent, Sequence& child) {
  QUIRE_CHECK(num_in_flight_ == 0 && parent.awaits_token, num_in_flight_,
              " steps in flight, parent awaits a token: ", parent.awaits_token);
  QUIRE_CHECK(child.request == parent.request && child.tokens.empty() && !child.finished(), "sequence ", child.index,
              " is in use");
  child.tokens.reserve(static_cast<size_t>(parent.request->max_total_tokens));
  child.tokens = parent.tokens;
  child.awaits_token = true;
  if (parent.blocks.empty() || std::ssize(running_) >= options_.max_num_seqs) return;
  const int32_t num_full = parent.num_computed / options_.block_size;
  const bool has_tail = parent.num_computed % options_.block_size > 0;
  BlockRef tail = has_tail ? cache_.allocate() : BlockRef();
  if (has_tail && !tail) return;
  child.blocks.reserve(static_cast<size_t>(blocks_for(parent.request->max_total_tokens)));
  child.blocks.assign(parent.blocks.begin(), parent.blocks.begin() + num_full);
  if (has_tail) {
    copies_.push_back({&child, parent.blocks.back(), tail});
    child.blocks.push_back(std::move(tail));
  }
  child.num_computed = parent.num_computed;
  child.num_hashed_blocks = parent.num_hashed_blocks;
  running_.insert(&child);
  give_row(child);
}

void Scheduler::append(Sequence& sequence, int32_t token) {
  QUIRE_CHECK(
      num_in_flight_ == 0 && sequence.awaits_token && sequence.num_tokens() < sequence.request->max_total_tokens,
      num_in_flight_, " steps in flight, ", sequence.num_tokens(), " tokens, awaits one: ", sequence.awaits_token);
  sequence.tokens.push_back(token);
  sequence.awaits_token = false;
  sequence.row_has_last_token = false;
  if (sequence.blocks.empty()) waiting_.insert(&sequence);
}

void Scheduler::drop(Sequence& sequence) {
  QUIRE_CHECK(num_in_flight_ == 0 && sequence.awaits_token, num_in_flight_,
              " steps in flight, awaits a token: ", sequence.awaits_token);
  leave_queues(sequence);
  sequence.tokens.clear();
  sequence.awaits_token = false;
}

void Scheduler::forget_copies(const Sequence& sequence) {
  std::erase_if(copies_, [&](const Copy& copy) { return copy.child == &sequence; });
}

}  // namespace quire
