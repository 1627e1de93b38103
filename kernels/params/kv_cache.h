// One layer's view of the paged KV cache.
//
// A page holds block_size tokens of all KV heads. Inside a page the layout belongs to the backend (kernels that write
// and kernels that read are of one table); the sizes are the same for all: dtype_bytes * num_kv_heads * block_size *
// head_dim for K and again for V.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace quire {

struct KvCacheView {
  void* k = nullptr;  // [num_blocks] pages of page_elements()
  void* v = nullptr;  // [num_blocks] pages of page_elements()
  DType dtype = DType::f32;
  int32_t block_size = 0;  // tokens a page
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;

  int64_t page_elements() const { return static_cast<int64_t>(block_size) * num_kv_heads * head_dim; }
};

}  // namespace quire
