// What happens between the QKV projection and attention, in one pass over its output: per-head query and key norms
// (Qwen3), rotary embedding (Su et al. 2021), and the write of keys and values into the paged cache.
#pragma once

#include <cstdint>

#include "params/kv_cache.h"
#include "params/norm.h"

namespace quire {

struct RopeKvWriteParams {
  void* qkv =
      nullptr;  // [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]; q is rotated in place, k and v are read
  DType dtype = DType::f32;
  int64_t qkv_stride = 0;  // elements
  int64_t num_tokens = 0;
  int32_t num_heads = 0;
  const float* q_norm = nullptr;  // [head_dim] weight of an RMSNorm over each head, or null
  const float* k_norm = nullptr;
  float norm_eps = 0.0f;
  const int32_t* positions = nullptr;     // [num_tokens]
  const float* cos_sin = nullptr;         // [max_positions, rotary_dim]: rotary_dim / 2 cosines, then as many sines
  int32_t rotary_dim = 0;                 // 0: no rotation; may be less than head_dim (partial rotary)
  bool interleaved = false;               // pairs (2i, 2i+1) instead of (i, i + rotary_dim / 2)
  const int32_t* slot_mapping = nullptr;  // [num_tokens] block_id * block_size + offset; -1: not written
  KvCacheView kv;
};

}  // namespace quire
