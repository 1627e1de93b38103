// The product for f32 weights, exact in f32: the CUDA cores' twin of stream_gemm.cuh.
//
// Grid: x = 8 tokens, y = 16 packed rows. Block: four warps; warp w takes the row pairs (g, g + 8), g = 2 w and 2 w +
// 1, which are gate and up of one column where the weight is gated. Lane l sums k = 4 l + 128 i, i ascending; a
// butterfly adds the lanes. So the order depends on k alone. Nothing is shared, there is no barrier. Bytes: the weight
// once a token block; the activations, m x k x 4 a strip, come from the caches. Limit: 16 products a weight element of
// 4 bytes, memory-bound up to 8 tokens, then 4-byte shared activations bound it; f32 is for tests.
#pragma once

#include "cuda/gemm/epilogue.cuh"
#include "cuda/gemm/gemm_args.h"
#include "cuda/simt/simt.h"

namespace quire::cuda {

constexpr int kF32Tokens = 8;
constexpr int kF32Rows = 16;
constexpr int kF32Threads = 128;

// Four elements of a row from k on; zeros from `cols` on, which is never read.
__device__ __forceinline__ float4 load_activations_f32(const GemmArgs& p, const float* row, int k) {
  if (k >= p.cols) return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (p.a_aligned) return *reinterpret_cast<const float4*>(row + k);
  const auto at = [&](int i) { return k + i < p.cols ? row[k + i] : 0.0f; };
  return make_float4(at(0), at(1), at(2), at(3));
}

__device__ __forceinline__ float dot4(float4 x, float4 y, float sum) {
  return fmaf(x.w, y.w, fmaf(x.z, y.z, fmaf(x.y, y.y, fmaf(x.x, y.x, sum))));
}

__device__ __forceinline__ float sum_of_lanes(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
  return x;
}

// Rows g and g + 8 of the strip, whose elements start at `weight`, with up to 8 tokens.
__device__ __forceinline__ void multiply_row_pair(const GemmArgs& p, const float* weight, int tile_row, int g,
                                                  int token_begin, int lane) {
  const int num_tokens = min(kF32Tokens, p.m - token_begin);
  const float* a = static_cast<const float*>(p.a) + token_begin * p.a_stride;
  float low[kF32Tokens] = {}, high[kF32Tokens] = {};
  for (int k = 4 * lane; k < p.padded_cols; k += 128) {
    const auto w0 = *reinterpret_cast<const float4*>(weight + k);
    const auto w1 = *reinterpret_cast<const float4*>(weight + static_cast<int64_t>(8) * p.padded_cols + k);
#pragma unroll
    for (int i = 0; i < kF32Tokens; ++i) {
      if (i >= num_tokens) continue;
      const float4 x = load_activations_f32(p, a + i * p.a_stride, k);
      low[i] = dot4(w0, x, low[i]);
      high[i] = dot4(w1, x, high[i]);
    }
  }
  float own_low = 0.0f, own_high = 0.0f;  // lane i finishes token i
#pragma unroll
  for (int i = 0; i < kF32Tokens; ++i) {
    if (i >= num_tokens) continue;
    const float x = sum_of_lanes(low[i]), y = sum_of_lanes(high[i]);
    if (lane == i) own_low = x, own_high = y;
  }
  if (lane >= num_tokens) return;
  if (p.gated) return finish_element<float>(p, token_begin + lane, tile_row / 2 + g, own_low, own_high);
  finish_element<float>(p, token_begin + lane, tile_row + g, own_low, 0.0f);
  finish_element<float>(p, token_begin + lane, tile_row + g + 8, own_high, 0.0f);
}

__global__ void __launch_bounds__(kF32Threads) f32_gemm_kernel(const __grid_constant__ GemmArgs p) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int tile_row = static_cast<int>(blockIdx.y) * kF32Rows;
  simt::grid_dependency_launch();
  simt::grid_dependency_wait();
#pragma unroll 1
  for (int g = 2 * warp; g < 2 * warp + 2; ++g) {
    const float* weight = static_cast<const float*>(p.weight) + static_cast<int64_t>(tile_row + g) * p.padded_cols;
    multiply_row_pair(p, weight, tile_row, g, static_cast<int>(blockIdx.x) * kF32Tokens, lane);
  }
}

}  // namespace quire::cuda
