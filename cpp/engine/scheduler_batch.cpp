// The index arithmetic of a step; see scheduler_batch.h.
#include "engine/scheduler_batch.h"

#include <algorithm>

#include "base/check.h"

namespace quire {
namespace {

void clear(Batch& batch) {
  for (std::vector<int32_t>* array : {&batch.token_ids, &batch.positions, &batch.slot_mapping, &batch.kv_lens,
                                      &batch.block_tables, &batch.sample_token_rows, &batch.sample_seqs, &batch.rows,
                                      &batch.row_block_ids, &batch.num_drafts, &batch.lagging_tokens}) {
    array->clear();
  }
  batch.query_start.assign(1, 0);
  batch.row_updates.clear();
  batch.block_copies.clear();
  batch.block_table_stride = 0;
}

void append_places(const ScheduledSequence& scheduled, int32_t block_size, Batch& batch) {
  const Sequence& sequence = *scheduled.sequence;
  for (int32_t position = scheduled.begin; position < scheduled.kv_len(); ++position) {
    const BlockRef& block = sequence.blocks[static_cast<size_t>(position / block_size)];
    batch.positions.push_back(position);
    batch.slot_mapping.push_back(block.id() * block_size + position % block_size);
  }
  const size_t row = batch.block_tables.size();
  batch.block_tables.resize(row + static_cast<size_t>(batch.block_table_stride), -1);
  for (size_t b = 0; b < sequence.blocks.size(); ++b) batch.block_tables[row + b] = sequence.blocks[b].id();
}

// What the row of the sequence has to be told before the step.
void update_row(const ScheduledSequence& scheduled, Batch& batch) {
  Sequence& sequence = *scheduled.sequence;
  const auto num_blocks = static_cast<int32_t>(sequence.blocks.size());
  batch.rows.push_back(sequence.row);
  if (sequence.row_has_count && sequence.num_row_blocks == num_blocks) return;
  batch.row_updates.push_back({.row = sequence.row,
                               .num_computed = sequence.row_has_count ? -1 : scheduled.begin,
                               .num_prompt = static_cast<int32_t>(sequence.request->prompt.size()),
                               .first_block = sequence.num_row_blocks,
                               .num_blocks = num_blocks - sequence.num_row_blocks,
                               .block_ids_begin = static_cast<int32_t>(batch.row_block_ids.size())});
  for (int32_t b = sequence.num_row_blocks; b < num_blocks; ++b) {
    batch.row_block_ids.push_back(sequence.blocks[static_cast<size_t>(b)].id());
  }
  sequence.row_has_count = true;
  sequence.num_row_blocks = num_blocks;
}

// Tokens that the host knows; -1 stands for the newest one of the row.
void append_tokens(const ScheduledSequence& scheduled, bool device_rows, Batch& batch) {
  const Sequence& sequence = *scheduled.sequence;
  const int32_t end = scheduled.kv_len() - scheduled.num_drafts;
  const bool last_is_in_row = device_rows && scheduled.samples && sequence.row_has_last_token;
  for (int32_t position = scheduled.begin; position < end - (last_is_in_row ? 1 : 0); ++position) {
    batch.token_ids.push_back(sequence.tokens[static_cast<size_t>(position)]);
  }
  if (last_is_in_row) batch.token_ids.push_back(-1);
  for (int32_t i = 0; i < scheduled.num_drafts; ++i) batch.token_ids.push_back(sequence.drafts[static_cast<size_t>(i)]);
}

}  // namespace

void fill_batch(std::span<const ScheduledSequence> scheduled, int32_t block_size, bool device_rows, Batch& batch) {
  clear(batch);
  if (!device_rows) {
    for (const ScheduledSequence& each : scheduled) {
      batch.block_table_stride = std::max(batch.block_table_stride, static_cast<int32_t>(each.sequence->blocks.size()));
    }
  }
  for (const ScheduledSequence& each : scheduled) {
    Sequence& sequence = *each.sequence;
    QUIRE_CHECK(static_cast<int64_t>(sequence.blocks.size()) * block_size >= each.kv_len(), sequence.blocks.size(),
                " blocks for ", each.kv_len(), " tokens");
    append_tokens(each, device_rows, batch);
    if (device_rows) {
      update_row(each, batch);
    } else {
      append_places(each, block_size, batch);
    }
    for (int32_t row = batch.num_tokens() - each.num_samples(); row < batch.num_tokens(); ++row) {
      batch.sample_token_rows.push_back(row);
      batch.sample_seqs.push_back(batch.num_seqs());
      sequence.row_has_last_token = device_rows;
    }
    batch.query_start.push_back(batch.num_tokens());
    batch.kv_lens.push_back(each.kv_len());
  }
}

void list_drafts(std::span<const ScheduledSequence> scheduled, Batch& batch) {
  for (const ScheduledSequence& each : scheduled) {
    batch.num_drafts.push_back(each.num_drafts);
    batch.lagging_tokens.push_back(
        each.sequence->draft_lags ? each.sequence->tokens[static_cast<size_t>(each.begin) - 1] : -1);
  }
}

}  // namespace quire
