// The epilogue of a product that cuBLASLt has left in the workspace.
//
// Grid: x = 256 columns of out, y = 4 tokens. A thread finishes one column of four tokens, whose reads are under way at
// a time; neighbours have neighbouring columns, so that reads and writes are whole sectors (a gated pair reads eight
// gates and their eight ups: one sector each). Nothing is shared, there is no barrier. Bytes: the product (4 a packed
// row and token) and out once. The product of one launch is at most 64 MB, most of which the second-level cache still
// has. Prediction, not measured: 512 tokens of gate-up of Llama-3.1-8B, 59 MB + 15 MB, in 20 us behind 170 us of
// product.
#pragma once

#include "cuda/gemm/epilogue.cuh"
#include "cuda/gemm/gemm_args.h"
#include "cuda/gemm/weight_layout.h"
#include "cuda/simt/simt.h"

namespace quire::cuda {

constexpr int kFinishThreads = 256;
constexpr int kFinishTokens = 4;

struct FinishArgs {
  GemmArgs gemm;
  const float* product;  // [gemm.m, product_stride], packed rows
  int64_t product_stride;
};

template <typename Element>
__global__ void __launch_bounds__(kFinishThreads) finish_product_kernel(const __grid_constant__ FinishArgs args) {
  const GemmArgs& p = args.gemm;
  const int column = static_cast<int>(blockIdx.x * kFinishThreads + threadIdx.x);
  const int token_begin = static_cast<int>(blockIdx.y) * kFinishTokens;
  simt::grid_dependency_launch();
  simt::grid_dependency_wait();
  if (column >= p.outputs) return;
  const int row = p.gated ? column / kGatedGroup * (2 * kGatedGroup) + column % kGatedGroup : column;
  float sum[kFinishTokens] = {}, up[kFinishTokens] = {}, old[kFinishTokens] = {};
#pragma unroll
  for (int i = 0; i < kFinishTokens; ++i) {
    if (token_begin + i >= p.m) continue;
    const float* from = args.product + (token_begin + i) * args.product_stride + row;
    sum[i] = from[0];
    if (p.gated) up[i] = from[kGatedGroup];
    if (p.accumulate) old[i] = *sum_address(p, token_begin + i, column);
  }
#pragma unroll
  for (int i = 0; i < kFinishTokens; ++i) {
    if (token_begin + i >= p.m) continue;
    store_finished<Element>(p, token_begin + i, column, finished(p, column, sum[i], up[i]), old[i]);
  }
}

}  // namespace quire::cuda
