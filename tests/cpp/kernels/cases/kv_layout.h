// Where a backend puts an element of the KV cache inside its pages: cases that look into the cache ask here.
#pragma once

#include <string_view>

#include "cpu/layout.h"
#include "params/kernel_table.h"

namespace quire::cases {

enum class KvLayout { cpu_tiles, cuda_rows };

inline KvLayout layout_of(const KernelTable& table) {
  const std::string_view name = table.name;
  return name == "simt" || name == "cuda" ? KvLayout::cuda_rows : KvLayout::cpu_tiles;
}

inline int64_t kv_element(KvLayout layout, const KvCacheView& kv, int64_t slot, int32_t kv_head, int32_t d,
                          bool is_key) {
  const int64_t block_id = slot / kv.block_size, offset = slot % kv.block_size;
  if (layout == KvLayout::cuda_rows) {  // [block][kv_head][token in block][head_dim]
    return ((block_id * kv.num_kv_heads + kv_head) * kv.block_size + offset) * kv.head_dim + d;
  }
  const int64_t lane = offset % cpu::kTileTokens;
  const int64_t tile = cpu::tile_offset(kv, block_id, kv_head, offset - lane);
  return tile + (is_key ? cpu::key_offset(d, lane, kv.head_dim, kv.dtype) : lane * kv.head_dim + d);
}

}  // namespace quire::cases
