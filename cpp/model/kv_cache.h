// The paged KV cache of one rank: a view a layer over one `kv_cache` region.
//
// Decides: where a layer's pages lie. Does not know: which sequence holds which block (the scheduler does).
#pragma once

#include <cstddef>
#include <vector>

#include "model/arch.h"
#include "params/kv_cache.h"

namespace quire {

struct KvCache {
  std::vector<KvCacheView> layers;
  size_t num_bytes = 0;  // from the base on
};

// Bytes of one block (K and V, all layers).
inline int64_t kv_block_bytes(const ArchSpec& arch, DType dtype, int32_t block_size) {
  int64_t elements = 0;
  for (const LayerSpec& layer : arch.layers) elements += 2 * layer.attn.kv_dim() * block_size;
  return elements * static_cast<int64_t>(dtype_bytes(dtype));
}

// Lays num_blocks pages a layer out from `base`: all K pages of a layer, then all its V pages. What is as large as
// `alignment` (of the base, too) begins at a multiple of it: a host's huge pages, of which the first tokens then touch
// one and not two.
inline KvCache place_kv_cache(const ArchSpec& arch, DType dtype, int32_t block_size, int64_t num_blocks,
                              std::byte* base, size_t alignment = 1) {
  KvCache cache;
  const auto place = [&](size_t num_bytes) {
    if (num_bytes >= alignment) cache.num_bytes = (cache.num_bytes + alignment - 1) / alignment * alignment;
    std::byte* const at = base != nullptr ? base + cache.num_bytes : nullptr;
    cache.num_bytes += num_bytes;
    return at;
  };
  for (const LayerSpec& layer : arch.layers) {
    KvCacheView view{.dtype = dtype,
                     .block_size = block_size,
                     .num_kv_heads = layer.attn.num_kv_heads,
                     .head_dim = layer.attn.head_dim};
    const size_t half = static_cast<size_t>(num_blocks * view.page_elements()) * dtype_bytes(dtype);
    view.k = place(half);
    view.v = place(half);
    cache.layers.push_back(view);
  }
  return cache;
}

}  // namespace quire
