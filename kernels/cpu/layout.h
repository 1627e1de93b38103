// Where an element of a packed weight or of a KV page lies. The only file that knows; all instruction sets share it.
//
// Weights: panels of 32 output columns. bf16 keeps the two elements of a k pair together, [k / 2][32][2], as VDPBF16PS
// wants them; f32 and f16 are [k][32]. A gated panel holds 16 gate columns, then their 16 up columns, so that the
// epilogue has both in registers. The last panel and an odd last k are padded with zeros.
// i8 weights: [k / 4][32][4], k padded with zeros to whole steps of 64, then the scales
// of the 32 columns, float.
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

constexpr int64_t kByteStepK = 64;  // of a step on tiles
constexpr int kByteGroup = 4;       // k that lie together

constexpr int64_t padded_byte_cols(int64_t cols) { return round_up(cols, kByteStepK); }
constexpr int64_t byte_panel_bytes(int64_t cols) {
  return padded_byte_cols(cols) * kPanelColumns + kPanelColumns * static_cast<int64_t>(sizeof(float));
}

// Rows of activations as the products with i8 weights read them: padded_byte_cols(cols) values, then of every run of
// kInt8Run k its scale and a number that is added to its sums. What a row takes is no power of two, so that rows of a
// tile do not meet in one set of the cache.
struct ByteRows {
  uint8_t* data;
  int64_t cols;  // padded
  int64_t num_runs;
  int64_t stride;

  ByteRows(void* rows, int64_t num_cols)
      : data(static_cast<uint8_t*>(rows)),
        cols(padded_byte_cols(num_cols)),
        num_runs(ceil_div(cols, kInt8Run)),
        stride(round_up(cols + num_runs * 8, 64)) {}

  int8_t* values(int64_t row) const { return reinterpret_cast<int8_t*>(data + row * stride); }
  float* scales(int64_t row) const { return reinterpret_cast<float*>(data + row * stride + cols); }
  int32_t* offsets(int64_t row) const { return reinterpret_cast<int32_t*>(scales(row) + num_runs); }
};

}  // namespace quire::cpu
