// Reads rows of a packed weight (weight_layout.h) as float32, when somebody looks at a model.
//
// out[row][k] = packed[packed_row(row_begin + row)][k]. Grid: x = run of 256 k's, y = row. One element a thread; both
// sides are contiguous along k. Bytes: the rows once, four bytes an element out. Limit: copy bandwidth.
#pragma once

#include <cstdint>

#include "cuda/gemm/weight_layout.h"
#include "cuda/simt/simt.h"

namespace quire::cuda {

constexpr int kUnpackThreads = 256;

struct UnpackArgs {
  const void* packed;
  float* out;
  int64_t row_begin;  // in the half
  int64_t cols;
  int64_t padded_cols;
  DType dtype;
  PackPart part;
};

__device__ __forceinline__ float element_as_float(const void* base, DType dtype, int64_t at) {
  if (dtype == DType::f32) return static_cast<const float*>(base)[at];
  if (dtype == DType::bf16) return __bfloat162float(static_cast<const __nv_bfloat16*>(base)[at]);
  return __half2float(static_cast<const __half*>(base)[at]);
}

__global__ void __launch_bounds__(kUnpackThreads) unpack_weight_kernel(const __grid_constant__ UnpackArgs p) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kUnpackThreads + threadIdx.x;
  if (k >= p.cols) return;
  const auto row = static_cast<int64_t>(blockIdx.y);
  const int64_t at = packed_row(p.row_begin + row, p.part) * p.padded_cols + k;
  p.out[row * p.cols + k] = element_as_float(p.packed, p.dtype, at);
}

}  // namespace quire::cuda
