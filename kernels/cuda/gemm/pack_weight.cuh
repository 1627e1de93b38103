// Copies a source matrix of any element type and strides into the packed layout (weight_layout.h), once, at load.
//
// packed[packed_row(row)][k] = source[row][k], zeros in the padded columns, and, by the call that holds the last row of
// its half, in the padded rows behind it. So parts (q, k, v; gate, up) come in any order.
// Grid: x = tile of 32 k's, y = tile of 32 rows. Block: 32 x 8 threads. The tile is read along the smaller stride of
// the source and written along k, through shared memory; the one barrier separates the two.
// Bytes: source and weight once, in pieces of 32 elements (whole sectors). Limit: copy bandwidth, 16 GB in 8 ms.
#pragma once

#include <cstdint>

#include "cuda/gemm/weight_layout.h"
#include "cuda/simt/simt.h"

namespace quire::cuda {

constexpr int kPackTile = 32;
constexpr int kPackThreadRows = 8;

struct PackArgs {
  const void* source;
  void* packed;
  int64_t row_stride;
  int64_t col_stride;
  int64_t row_begin;    // in the half
  int64_t rows;         // of the source
  int64_t filled_rows;  // rows and the padding behind them
  int64_t cols;
  int64_t padded_cols;
  DType source_dtype;
  DType dtype;
  PackPart part;
};

struct PackShared {
  float tile[kPackTile][kPackTile + 1];  // one more, so that a column's elements lie in different banks
};

__device__ __forceinline__ float load_as_float(const void* base, DType dtype, int64_t at) {
  if (dtype == DType::f32) return static_cast<const float*>(base)[at];
  if (dtype == DType::bf16) return __bfloat162float(static_cast<const __nv_bfloat16*>(base)[at]);
  return __half2float(static_cast<const __half*>(base)[at]);
}

__device__ __forceinline__ void store_as(void* base, DType dtype, int64_t at, float x) {
  if (dtype == DType::f32) {
    static_cast<float*>(base)[at] = x;
  } else if (dtype == DType::bf16) {
    static_cast<__nv_bfloat16*>(base)[at] = __float2bfloat16(x);
  } else {
    static_cast<__half*>(base)[at] = __float2half(x);
  }
}

__global__ void __launch_bounds__(kPackTile* kPackThreadRows) pack_weight_kernel(const __grid_constant__ PackArgs p) {
  auto& s = simt::block_shared<PackShared>();
  const int64_t k_begin = static_cast<int64_t>(blockIdx.x) * kPackTile;
  const int64_t row_begin = static_cast<int64_t>(blockIdx.y) * kPackTile;
  const bool reads_along_rows = p.row_stride < p.col_stride;
  for (int i = static_cast<int>(threadIdx.y); i < kPackTile; i += kPackThreadRows) {
    const int fast = static_cast<int>(threadIdx.x);
    const int row = reads_along_rows ? fast : i, k = reads_along_rows ? i : fast;
    const bool is_inside = row_begin + row < p.rows && k_begin + k < p.cols;
    const int64_t at = (row_begin + row) * p.row_stride + (k_begin + k) * p.col_stride;
    s.tile[row][k] = is_inside ? load_as_float(p.source, p.source_dtype, at) : 0.0f;
  }
  __syncthreads();
  const int64_t k = k_begin + threadIdx.x;
  for (int i = static_cast<int>(threadIdx.y); i < kPackTile; i += kPackThreadRows) {
    if (row_begin + i >= p.filled_rows) break;
    const int64_t row = packed_row(p.row_begin + row_begin + i, p.part);
    store_as(p.packed, p.dtype, row * p.padded_cols + k, s.tile[i][threadIdx.x]);
  }
}

}  // namespace quire::cuda
