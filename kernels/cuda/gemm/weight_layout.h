// Where an element of a packed weight lies on the GPU, and how the sum over k is cut. The only file that knows.
//
// Layout: row-major, [padded_rows][padded_cols], zeros in the padding. Columns are padded to 32 elements (64 or 128
// bytes), rows to 64, so that no tile of a kernel needs a bound check. A gated weight alternates eight gate rows and
// their eight up rows: in the accumulator of an m16n8 product rows g and g + 8 belong to one lane, so the epilogue has
// both factors in its registers.
//
// Why not the order of mma fragments: a product does not change when k is permuted alike in both operands. Lane (g, t)
// of a warp loads the 16 bytes at row g, k = 8 t of a 32-wide step; they are its operands of two m16n8k16 products, no
// ldmatrix and no shuffle. One load instruction covers 8 rows x 64 contiguous bytes: whole sectors, each asked for
// once, and the next step takes the other half of the same 128-byte lines. A fragment-ordered layout would make these
// 512 bytes contiguous and gain nothing but DRAM page locality, which the steps in flight give as well. Row-major is
// what a large product through cuBLASLt needs (a leading dimension of padded_cols), so one copy of the weight serves
// both; the eight-row interleaving of gated pairs then only means that the activation kernel behind it reads its input
// so. An embedding reads whole rows.
//
// The sum over k, fixed by the shape of the weight alone: chunks of 64, dealt out to `num_splits` contiguous ranges; in
// a range, warp w of four sums the chunks w, w + 4, ... in ascending order; the four sums are added in warp order, the
// ranges in ascending order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"
#include "params/gemm.h"

namespace quire::cuda {

constexpr int kRowPadding = 64;
constexpr int kColumnPadding = 32;
constexpr int kGatedGroup = 8;

constexpr int kGemmWarps = 4;
constexpr int kChunk = 64;  // elements of k
constexpr int kMaxSplits = 8;
constexpr int kMinSplitCols = 1024;  // 256 for each warp: eight steps of 32
constexpr int kWantedBlocks = 256;   // strips of 64 rows x splits; about two blocks on each processor of an H100

// What starts a workspace: counters of strips, zero between launches. Fewer strips than kWantedBlocks are split.
constexpr int64_t kCounterBytes = kWantedBlocks * int64_t{sizeof(uint32_t)};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
constexpr int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

// Columns of the product: the rows of the weight, or the width of a gated pair.
constexpr int64_t num_outputs(const PackedWeight& weight) { return weight.gated ? weight.rows / 2 : weight.rows; }

constexpr int64_t padded_rows(int64_t rows) { return round_up(rows, kRowPadding); }
constexpr int64_t padded_cols(int64_t cols) { return round_up(cols, kColumnPadding); }

// The packed row of row `row` of a whole weight, or of its gate or up half.
constexpr int64_t packed_row(int64_t row, PackPart part) {
  if (part == PackPart::whole) return row;
  return row / kGatedGroup * (2 * kGatedGroup) + row % kGatedGroup + (part == PackPart::up ? kGatedGroup : 0);
}

// Rows of the whole weight or of one half, padding included.
constexpr int64_t padded_outputs(const PackedWeight& weight) {
  return weight.gated ? round_up(weight.rows / 2, kRowPadding / 2) : padded_rows(weight.rows);
}

// All rows in memory.
constexpr int64_t packed_rows(const PackedWeight& weight) { return padded_outputs(weight) * (weight.gated ? 2 : 1); }

// Up to the last one that holds a weight.
constexpr int64_t rows_in_use(const PackedWeight& weight) {
  return weight.gated ? ceil_div(weight.rows / 2, kGatedGroup) * 2 * kGatedGroup : weight.rows;
}

constexpr int64_t num_chunks(int64_t cols) { return ceil_div(padded_cols(cols), kChunk); }

// Ranges of k: more where few strips of rows would leave processors idle.
constexpr int64_t num_splits(int64_t rows, int64_t cols) {
  const int64_t wanted = ceil_div(kWantedBlocks, ceil_div(greater(1, rows), kRowPadding));
  return greater(1, lesser(lesser(kMaxSplits, wanted), cols / kMinSplitCols));
}

}  // namespace quire::cuda
