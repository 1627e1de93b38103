// Token embeddings, plus learned positions where the architecture has them.
#pragma once

#include <cstdint>

#include "params/gemm.h"

namespace quire {

// out[t] (+)= scale * table[token_ids[t] + token_id_offset] + position_table[positions[t] + position_offset]
// With `is_part` a token that the table does not reach counts as a row of zeros: another rank has it.
// The table is the packed weight that a tied head multiplies with, so tying costs no second copy.
struct EmbeddingParams {
  const int32_t* token_ids = nullptr;  // [num_tokens]
  int32_t token_id_offset = 0;
  const int32_t* positions = nullptr;  // [num_tokens]; read only with a position_table
  int64_t num_tokens = 0;
  PackedWeight table;            // [vocab_size, dim]
  PackedWeight position_table;   // [max_positions, dim] or data == nullptr
  int32_t position_offset = 0;   // OPT keeps two unused rows at the start
  float scale = 1.0f;            // Gemma: sqrt(hidden_size), rounded to the model's dtype
  void* out = nullptr;           // [num_tokens, dim], rows out_stride elements apart
  DType out_dtype = DType::f32;  // f32, or table.dtype
  int64_t out_stride = 0;
  bool accumulate = false;  // out += ...; out_dtype f32 only
  bool is_part = false;     // the table has some rows of a larger one
};

}  // namespace quire
