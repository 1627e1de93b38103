// What the prefix cache is offered, before and after it is computed; see scheduler.h. Verbs: plan, commit.
//
// A step's blocks are promised when it is planned, so that others planned behind it, in the same step too, have them.
// They are kept when it is committed; when it is abandoned they are retracted, with those who had them.
#include <algorithm>

#include "engine/scheduler.h"

namespace quire {

void Scheduler::Step::clear() {
  planned.clear();
  promised.clear();
  sampled.clear();
}

void Scheduler::promise_full_blocks(Step& step, const ScheduledSequence& scheduled) {
  Sequence& sequence = *scheduled.sequence;
  // The token of a step in flight is not known yet.
  const int32_t num_full = std::min(scheduled.kv_len(), sequence.num_tokens()) / options_.block_size;
  for (; sequence.num_hashed_blocks < num_full; ++sequence.num_hashed_blocks) {
    const int32_t index = sequence.num_hashed_blocks;
    if (!cache_.promise(sequence.tokens, sequence.request->cache_salt, sequence.blocks, index)) return;
    step.promised.push_back(sequence.blocks[static_cast<size_t>(index)].id());
  }
}

void Scheduler::offer_full_blocks(Sequence& sequence) {
  const int32_t num_complete = sequence.num_computed - (sequence.draft_lags ? 1 : 0);
  const int32_t num_full = num_complete / options_.block_size;
  for (; sequence.num_hashed_blocks < num_full; ++sequence.num_hashed_blocks) {
    const int32_t index = sequence.num_hashed_blocks;
    const int32_t block_id = sequence.blocks[static_cast<size_t>(index)].id();
    cache_.insert(sequence.tokens, sequence.request->cache_salt, sequence.blocks, index);
    // Another one with the same content took its place; the row has to be told.
    if (sequence.blocks[static_cast<size_t>(index)].id() == block_id) continue;
    sequence.num_row_blocks = std::min(sequence.num_row_blocks, index);
  }
}

void Scheduler::forget_broken_promises() {
  if (!cache_.enabled()) return;
  std::vector<Sequence*> misled;
  for (Sequence* const sequence : running_) {
    const int32_t num_offered = sequence->num_hashed_blocks;
    int32_t num_cached = 0;
    while (num_cached < num_offered && cache_.contains(sequence->blocks[static_cast<size_t>(num_cached)].id())) {
      ++num_cached;
    }
    sequence->num_hashed_blocks = num_cached;
    // Its own next block it has not computed to the end, or it would be committed.
    const bool relies_on_it = sequence->num_computed >= (num_cached + 1) * options_.block_size;
    if (num_cached < num_offered && relies_on_it) misled.push_back(sequence);
  }
  for (Sequence* const sequence : misled) preempt(*sequence);
}

}  // namespace quire
