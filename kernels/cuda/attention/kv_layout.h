// How the CUDA backend lays K and V out inside a page of the cache: [kv_head][token in page][head_dim], one after the
// other without padding. The tokens of one KV head lie together, so that 16 or more keys are one contiguous piece for
// the kernels that read, and a box of a 2-D tensor map over [num_pages * num_kv_heads * block_size, head_dim].
//
// Pages hold a multiple of kKvSliceTokens tokens, so that a slice of that many keys at a multiple of its own size
// never crosses a page. Pure arithmetic: host and device.
#pragma once

#include <cstdint>

namespace quire::cuda {

constexpr int32_t kKvSliceTokens = 16;

// Element of (page, kv_head, token in page, 0) in KvCacheView::k, and of the same in KvCacheView::v.
constexpr int64_t kv_offset(int64_t page, int32_t kv_head, int32_t token_in_page, int32_t num_kv_heads,
                            int32_t block_size, int32_t head_dim) {
  return ((page * num_kv_heads + kv_head) * block_size + token_in_page) * head_dim;
}

}  // namespace quire::cuda
