// What a device keeps of the running sequences from step to step, one row a sequence, so that a step needs little from
// the host: a decode step that nobody joined or left needs the list of rows alone.
//
// A row belongs to one sequence while it runs. Its newest token, the count of its computed tokens and its page ids stay
// on the device; the host tells only what changes (a new page, a new sequence, other sampling parameters).
#pragma once

#include <cstdint>

#include "params/sampling.h"

namespace quire {

// The rows; [num_rows] entries each.
struct DeviceRows {
  int32_t* last_token_ids = nullptr;  // the newest token: sampled, its key and value not yet computed
  int32_t* num_computed = nullptr;    // tokens whose keys and values are in the cache
  int32_t* num_prompt = nullptr;      // tokens of the prompt; those behind them are the output
  int32_t* tables = nullptr;          // [num_rows, table_stride] page ids; only those of the tokens are read
  int64_t table_stride = 0;
  SamplingRow* sampling = nullptr;  // output_index is not kept: it follows from the counts
};

struct RowUpdate {
  int32_t row = 0;
  int32_t num_computed = -1;  // -1: as it is
  int32_t num_prompt = 0;
  int32_t first_block = 0;  // entries [first_block, first_block + num_blocks) of the row's table become
  int32_t num_blocks = 0;
  int32_t block_ids_begin = 0;  // block_ids[block_ids_begin ...)
};

struct SamplingRowUpdate {
  int32_t row = 0;
  SamplingRow sampling;
};

struct UpdateRowsParams {
  DeviceRows rows;
  const RowUpdate* updates = nullptr;  // [num_updates] of distinct rows
  int32_t num_updates = 0;
  const int32_t* block_ids = nullptr;
  const SamplingRowUpdate* sampling = nullptr;  // [num_sampling] of distinct rows
  int32_t num_sampling = 0;
};

// last_token_ids[sample_rows[i]] = token_ids[i]
struct StoreSampledParams {
  DeviceRows rows;
  const int32_t* sample_rows = nullptr;  // [num_samples] distinct; -1: padding
  const int32_t* token_ids = nullptr;    // [num_samples]
  int32_t num_samples = 0;
};

}  // namespace quire
