// The inputs of a step, made on the device from the rows that live there (device_rows.h).
//
// The batch lists the rows that take part. A decode step is one in which every sequence computes the newest token of
// its row and samples the next: nothing but the list has to come from the host. Its arrays have room for max_seqs
// sequences, a bucket that a captured graph was recorded with; entries from *num_seqs on are padding and become a token
// 0 at position 0 that is written nowhere (slot -1), belongs to an empty sequence and samples greedily for no row.
#pragma once

#include <cstdint>

#include "params/device_rows.h"

namespace quire {

struct PrepareBatchParams {
  DeviceRows rows;  // num_computed is raised by the tokens of the step
  int32_t block_size = 0;

  // Which rows, in the order of the batch.
  const int32_t* num_seqs = nullptr;  // [1] at most max_seqs
  const int32_t* seq_rows = nullptr;  // [max_seqs] distinct; entries from *num_seqs on are not read
  int32_t max_seqs = 0;
  // [max_seqs] the sample of each sequence, -1: none. Null: a decode step. Else query_start and token_ids are inputs,
  // the last token of a sequence may be -1 (the newest of its row), and there is no padding.
  const int32_t* sample_of_seq = nullptr;

  // The batch. In a decode step [num_tokens] is [max_seqs].
  int32_t* token_ids = nullptr;     // [num_tokens]
  int32_t* positions = nullptr;     // [num_tokens]
  int32_t* slot_mapping = nullptr;  // [num_tokens] block_id * block_size + offset of the token; -1: padding
  int32_t* kv_lens = nullptr;       // [max_seqs] keys after this step; 0: padding
  int32_t* query_start = nullptr;   // [max_seqs + 1]; made in a decode step: 0, 1, ..., *num_seqs, *num_seqs, ...
  int32_t* block_tables = nullptr;  // [max_seqs, block_table_stride] of rows; entries past the tokens are left alone
  int64_t block_table_stride = 0;   // enough for every row's tokens

  // Its samples, [max_seqs] each.
  int32_t* sample_token_rows = nullptr;  // the token whose logits are wanted
  int32_t* sample_rows = nullptr;        // the row that gets what is sampled; -1: padding
  SamplingRow* sampling = nullptr;       // of that row, with the index of the token about to be drawn
};

}  // namespace quire
