// The inputs of a decode-only step (one new token for each sequence), made on the device from rows that live there, so
// that nothing has to be uploaded while the same sequences run on.
//
// A row is what the device knows of one running sequence; the batch lists the rows that take part. The arrays of the
// batch have room for max_seqs sequences, a bucket that a captured graph was recorded with. Entries from *num_seqs on
// are padding and become a token 0 at position 0 that is written nowhere (slot -1) and belongs to an empty sequence.
#pragma once

#include <cstdint>

namespace quire {

struct PrepareBatchParams {
  // The rows; [*] entries each.
  const int32_t* last_token_ids = nullptr;  // [*] the newest token: sampled, its key and value not yet computed
  int32_t* num_computed = nullptr;  // [*] tokens whose keys and values are in the cache; raised by 1 for each sequence
  const int32_t* row_tables = nullptr;  // [*, row_table_stride] page ids; only those of the tokens are read
  int64_t row_table_stride = 0;
  int32_t block_size = 0;

  // Which rows, in the order of the batch.
  const int32_t* num_seqs = nullptr;    // [1] at most max_seqs
  const int32_t* rows = nullptr;        // [max_seqs] distinct; entries from *num_seqs on are not read
  const int32_t* token_rows = nullptr;  // [max_seqs] entry of last_token_ids for each sequence (the previous step's
                                        // order when that is the sampler's output), or null: rows
  int32_t max_seqs = 0;

  // The batch.
  int32_t* token_ids = nullptr;     // [max_seqs]
  int32_t* positions = nullptr;     // [max_seqs]
  int32_t* slot_mapping = nullptr;  // [max_seqs] block_id * block_size + offset of the new token; -1: padding
  int32_t* kv_lens = nullptr;       // [max_seqs] keys after this step; 0: padding
  int32_t* query_start = nullptr;   // [max_seqs + 1] 0, 1, ..., *num_seqs, *num_seqs, ...
  int32_t* block_tables = nullptr;  // [max_seqs, block_table_stride] of rows; entries past the tokens are left alone
  int64_t block_table_stride = 0;   // enough for every row's tokens
};

}  // namespace quire
