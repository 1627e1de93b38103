// One step of the whole engine, flat: what the scheduler plans and the worker runs.
//
// Decides: the format between the two. Knows block *ids*; addresses exist only in a Worker. A value that is reused from
// step to step (its vectors keep their capacity), cheap to send to another rank.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "params/copy_blocks.h"
#include "params/device_rows.h"

namespace quire {

struct Batch {
  // One entry a token. Sequence s owns tokens [query_start[s], query_start[s + 1]). With device rows a token may be -1,
  // the one that was sampled last in the row, and positions, slot_mapping and block_tables are made on the device.
  std::vector<int32_t> token_ids;
  std::vector<int32_t> positions;
  std::vector<int32_t> slot_mapping;  // block_id * block_size + offset: where the token's key and value go

  // One entry a sequence.
  std::vector<int32_t> query_start;   // num_seqs + 1 entries, the first is 0
  std::vector<int32_t> kv_lens;       // keys after this step
  std::vector<int32_t> block_tables;  // [num_seqs, block_table_stride]; entries past a sequence's blocks are -1
  int32_t block_table_stride = 0;

  // One entry a row of logits: the last known token of a sequence, if it is computed in this step, and the drafts
  // behind it.
  std::vector<int32_t> sample_token_rows;  // index of the token in token_ids
  std::vector<int32_t> sample_seqs;        // index of the sequence in this batch

  // With device rows: the row of each sequence, and what the rows have to be told first.
  std::vector<int32_t> rows;
  std::vector<RowUpdate> row_updates;
  std::vector<int32_t> row_block_ids;

  // With a draft model, one entry a sequence: how many of its tokens are drafts (the last ones; -1 until the model has
  // spoken), and the token in front of its first one if the draft model has yet to compute it, else -1.
  std::vector<int32_t> num_drafts;
  std::vector<int32_t> lagging_tokens;

  // Blocks that have to be copied before the step.
  std::vector<BlockCopy> block_copies;

  int32_t num_tokens() const { return static_cast<int32_t>(token_ids.size()); }
  int32_t num_seqs() const { return static_cast<int32_t>(kv_lens.size()); }
  int32_t num_samples() const { return static_cast<int32_t>(sample_seqs.size()); }
  // Every sequence computes the token that was sampled last in its row and samples the next: nothing of the step but
  // `rows` has to come from the host.
  bool feeds_itself() const {
    return !rows.empty() && num_tokens() == num_seqs() && num_samples() == num_seqs() &&
           std::ranges::all_of(token_ids, [](int32_t id) { return id < 0; });
  }
  bool empty() const { return token_ids.empty(); }
};

}  // namespace quire
