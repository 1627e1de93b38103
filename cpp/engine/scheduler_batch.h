// From scheduled sequences to the flat arrays of a Batch. Verb: plan.
//
// The one place on the host where a token position becomes a slot of the KV cache. Pure. Engine thread only.
#pragma once

#include <cstdint>
#include <span>

#include "engine/sequence.h"
#include "model/batch.h"

namespace quire {

// A sequence of a step: its tokens [begin, begin + num_new_tokens) are computed in it. It has the blocks.
struct ScheduledSequence {
  Sequence* sequence = nullptr;
  int32_t begin = 0;
  int32_t num_new_tokens = 0;  // drafts included
  bool samples = false;        // the last token that is known gets logits, and so do the drafts behind it
  int32_t num_drafts = 0;

  int32_t kv_len() const { return begin + num_new_tokens; }
  int32_t num_samples() const { return samples ? 1 + num_drafts : 0; }
};

// Overwrites `batch`; its vectors keep their capacity. With `device_rows` positions, slots and block tables are left
// empty, and what the rows do not have yet is listed; the sequences' books of their rows are brought up to date.
void fill_batch(std::span<const ScheduledSequence> scheduled, int32_t block_size, bool device_rows, Batch& batch);
// What a draft model has to know beside: Batch::num_drafts and Batch::lagging_tokens.
void list_drafts(std::span<const ScheduledSequence> scheduled, Batch& batch);

}  // namespace quire
