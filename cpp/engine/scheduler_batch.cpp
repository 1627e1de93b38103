// The index arithmetic of a step; see scheduler_batch.h.
#include "engine/scheduler_batch.h"

#include <algorithm>

#include "base/check.h"

namespace quire {
namespace {

void append_tokens(const ScheduledSequence& scheduled, int32_t block_size, Batch& batch) {
  const Sequence& sequence = *scheduled.sequence;
  for (int32_t position = sequence.num_computed; position < scheduled.kv_len(); ++position) {
    const BlockRef& block = sequence.blocks[static_cast<size_t>(position / block_size)];
    batch.token_ids.push_back(sequence.tokens[static_cast<size_t>(position)]);
    batch.positions.push_back(position);
    batch.slot_mapping.push_back(block.id() * block_size + position % block_size);
  }
}

}  // namespace

void fill_batch(std::span<const ScheduledSequence> scheduled, int32_t block_size, Batch& batch) {
  batch.token_ids.clear();
  batch.positions.clear();
  batch.slot_mapping.clear();
  batch.query_start.assign(1, 0);
  batch.kv_lens.clear();
  batch.block_tables.clear();
  batch.sample_token_rows.clear();
  batch.sample_seqs.clear();
  size_t stride = 0;
  for (const ScheduledSequence& each : scheduled) stride = std::max(stride, each.sequence->blocks.size());
  batch.block_table_stride = static_cast<int32_t>(stride);
  for (const ScheduledSequence& each : scheduled) {
    const Sequence& sequence = *each.sequence;
    QUIRE_CHECK(static_cast<int64_t>(sequence.blocks.size()) * block_size >= each.kv_len(), sequence.blocks.size(),
                " blocks for ", each.kv_len(), " tokens");
    append_tokens(each, block_size, batch);
    if (each.samples()) {
      batch.sample_token_rows.push_back(batch.num_tokens() - 1);
      batch.sample_seqs.push_back(batch.num_seqs());
    }
    batch.query_start.push_back(batch.num_tokens());
    batch.kv_lens.push_back(each.kv_len());
    const size_t row = batch.block_tables.size();
    batch.block_tables.resize(row + stride, -1);
    for (size_t b = 0; b < sequence.blocks.size(); ++b) batch.block_tables[row + b] = sequence.blocks[b].id();
  }
}

}  // namespace quire
