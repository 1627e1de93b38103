// Launchers of attention over the paged cache; layout of its pages in kv_layout.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/attention/kv_layout.h"
#include "params/attention.h"
#include "params/stream.h"

namespace quire::cuda {

size_t attention_workspace_bytes(int64_t max_tokens, int64_t max_seqs, int64_t max_kv_len, int32_t num_heads,
                                 int32_t head_dim, int num_threads);
size_t attention_plan_bytes(int64_t max_tokens, int64_t max_seqs, int32_t num_heads);
void plan_attention(const PagedAttentionParams& params, Stream stream);
void paged_attention(const PagedAttentionParams& params, Stream stream);

}  // namespace quire::cuda
