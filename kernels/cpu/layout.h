// Where an element of a packed weight or of a KV page lies. The only file that knows; all instruction sets share it.
//
// Weights: panels of 32 output columns. bf16 keeps the two elements of a k pair together, [k / 2][32][2], as VDPBF16PS
// wants them; f32 and f16 are [k][32]. A gated panel holds 16 gate columns, then their 16 up columns, so that the
// epilogue has both in registers. The last panel and an odd last k are padded with zeros.
// KV pages: [kv_head][tile of 16 tokens]. A K tile is transposed, so that a vector of scores is one running sum:
// bf16 [head_dim / 2][16][2], then [16] for an odd last element; f32 and f16 [head_dim][16]. V is [token][head_dim].
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "params/gemm.h"
#include "params/kv_cache.h"

namespace quire::cpu {

constexpr int kPanelColumns = 32;
constexpr int kGatedColumns = kPanelColumns / 2;  // outputs of a gated panel
constexpr int kTileTokens = 16;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
constexpr int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

constexpr bool is_paired(DType dtype) { return dtype == DType::bf16; }

// k rounded up to what a panel stores.
constexpr int64_t padded_cols(int64_t cols, DType dtype) { return is_paired(dtype) ? round_up(cols, 2) : cols; }

// Elements of one panel.
constexpr int64_t panel_elements(int64_t cols, DType dtype) { return padded_cols(cols, dtype) * kPanelColumns; }

// Columns of the product: the rows of the weight, or the width of a gated pair.
constexpr int64_t num_outputs(const PackedWeight& weight) { return weight.gated ? weight.rows / 2 : weight.rows; }

constexpr int64_t outputs_per_panel(const PackedWeight& weight) { return weight.gated ? kGatedColumns : kPanelColumns; }

constexpr int64_t num_panels(const PackedWeight& weight) {
  return ceil_div(num_outputs(weight), outputs_per_panel(weight));
}

// Offset of element k of column `column` inside its panel.
constexpr int64_t panel_offset(int64_t k, int64_t column, DType dtype) {
  return is_paired(dtype) ? (k / 2 * kPanelColumns + column) * 2 + k % 2 : k * kPanelColumns + column;
}

// First element of the K or V tile that holds token `offset` (a multiple of 16) of a page, for one KV head.
inline int64_t tile_offset(const KvCacheView& kv, int64_t block_id, int64_t kv_head, int64_t offset) {
  return block_id * kv.page_elements() + (kv_head * kv.block_size + offset) * kv.head_dim;
}

// Offset of element d of token `lane` inside a K tile.
constexpr int64_t key_offset(int64_t d, int64_t lane, int64_t head_dim, DType dtype) {
  if (!is_paired(dtype)) return d * kTileTokens + lane;
  if (d == head_dim - 1 && head_dim % 2 != 0) return d * kTileTokens + lane;
  return (d / 2 * kTileTokens + lane) * 2 + d % 2;
}

}  // namespace quire::cpu
