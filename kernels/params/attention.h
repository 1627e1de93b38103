// Attention over the paged KV cache for a ragged batch of sequences: decode rows and prefill chunks alike.
//
// out[t, h] = sum_j softmax_j( softcap(scale * q[t, h] . k[j]) + bias ) v[j] over the visible j. Keys are visited in
// chunks of fixed size and position, so that a row's bits depend on its position and keys alone, not on how many rows
// or sequences share the launch, nor on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "params/kv_cache.h"

namespace quire {

struct PagedAttentionParams {
  const void* q = nullptr;  // [num_tokens, num_heads, head_dim], tokens q_stride elements apart
  int64_t q_stride = 0;
  DType dtype = DType::f32;  // of q and out
  int32_t num_heads = 0;     // a multiple of kv.num_kv_heads
  KvCacheView kv;
  int32_t num_seqs = 0;
  const int32_t* query_start = nullptr;   // [num_seqs + 1] tokens [query_start[s], query_start[s + 1]) belong to s
  const int32_t* kv_lens = nullptr;       // [num_seqs] keys of s after this step; its last query is at kv_lens[s] - 1
  const int32_t* block_tables = nullptr;  // [num_seqs, block_table_stride] page ids
  int64_t block_table_stride = 0;
  float scale = 0.0f;
  float softcap = 0.0f;  // > 0: softcap * tanh(score / softcap) (Gemma 2)
  int32_t window = 0;    // > 0: a query at p sees keys in (p - window, p], not causal: (p - window, p + window)
  const float* alibi_slopes = nullptr;  // [num_heads] or null (Press et al. 2022)
  // [num_heads, 2 * relative_reach + 1] or null (T5): what is added for the key at distance clamp(j - position,
  // -relative_reach, relative_reach), the lowest first.
  const float* relative_bias = nullptr;
  int32_t relative_reach = 0;
  const float* sinks = nullptr;  // [num_heads] logits of a key without a value, or null
  bool causal = true;            // false: every query of s sees all kv_lens[s] keys, later ones too
  // false: a launch with more queries than sequences may use a faster kernel whose bits are not those of decode steps;
  // then a row's bits depend on how its prompt was cut into launches. Ignored where there is no such kernel.
  bool batch_invariant = true;
  void* out = nullptr;  // [num_tokens, num_heads, head_dim], tokens out_stride elements apart
  int64_t out_stride = 0;
  void* workspace = nullptr;  // attention_workspace_bytes(...) bytes, 64-byte aligned, contents meaningless
  size_t workspace_bytes = 0;
  // Bounds that a launcher may use without reading device memory; the arrays above hold the truth. Unused on the cpu.
  int64_t num_tokens = 0;  // at least query_start[num_seqs]
  int32_t max_kv_len = 0;  // at least every kv_lens[s]
  // What plan_attention made of the arrays above, or null: then each launch plans for itself. A plan serves all
  // launches of a step with the same sequences, heads, head_dim, window, causal and workspace_bytes.
  void* plan = nullptr;  // attention_plan_bytes(...) bytes, 64-byte aligned
  size_t plan_bytes = 0;
};

}  // namespace quire
