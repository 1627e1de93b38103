// From scheduled sequences to the flat arrays of a Batch. Verb: plan.
//
// The one place where a token position becomes a slot of the KV cache. Pure: reads sequences, changes none. Engine
// thread only.
#pragma once

#include <cstdint>
#include <span>

#include "engine/sequence.h"
#include "model/batch.h"

namespace quire {

// A sequence of the step: tokens [num_computed, num_computed + num_new_tokens) are computed in it. It has the blocks.
struct ScheduledSequence {
  Sequence* sequence = nullptr;
  int32_t num_new_tokens = 0;

  int32_t kv_len() const { return sequence->num_computed + num_new_tokens; }
  // The last token that is known gets logits.
  bool samples() const { return kv_len() == sequence->num_tokens(); }
};

// Overwrites `batch`; its vectors keep their capacity.
void fill_batch(std::span<const ScheduledSequence> scheduled, int32_t block_size, Batch& batch);

}  // namespace quire
