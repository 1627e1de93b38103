// From sums to results: scale, bias, activation, gate, softcap, residual, rounding.
//
// Every product and sum is spelled out (__fmul_rn, fmaf), so that no instantiation contracts them differently: the bits
// of a result must not depend on the tile that computed it.
#pragma once

#include "cuda/gemm/gemm_args.h"
#include "cuda/simt/simt.h"

namespace quire::cuda {

__device__ __forceinline__ void store_element(float* out, float x) { *out = x; }
__device__ __forceinline__ void store_element(__nv_bfloat16* out, float x) { *out = __float2bfloat16(x); }
__device__ __forceinline__ void store_element(__half* out, float x) { *out = __float2half(x); }
__device__ __forceinline__ float load_element(const float* at) { return *at; }
__device__ __forceinline__ float load_element(const __nv_bfloat16* at) { return __bfloat162float(*at); }
__device__ __forceinline__ float load_element(const __half* at) { return __half2float(*at); }

__device__ __forceinline__ float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::silu:
      return x / __fadd_rn(1.0f, expf(-x));
    case Activation::gelu:
      return __fmul_rn(__fmul_rn(0.5f, x), erfcf(__fmul_rn(x, -0.707106781f)));
    case Activation::gelu_tanh: {
      const float cubic = fmaf(__fmul_rn(__fmul_rn(x, x), x), 0.044715f, x);
      const float half = __fmul_rn(0.5f, x);
      return fmaf(half, tanhf(__fmul_rn(cubic, 0.797884561f)), half);
    }
    case Activation::relu:
      return x < 0.0f ? 0.0f : x;  // NaN stays
    case Activation::tanh:
      return tanhf(x);
    case Activation::none:
      break;
  }
  return x;
}

// What out[token][column] is or is raised by. `up` is the second factor of a gated pair, else ignored.
__device__ __forceinline__ float finished(const GemmArgs& p, int column, float sum, float up) {
  float x = __fmul_rn(sum, p.scale);
  if (p.bias != nullptr) x = __fadd_rn(x, p.bias[column]);
  x = activate(p.activation, x);
  if (p.gated) {
    float y = __fmul_rn(up, p.scale);
    if (p.bias != nullptr) y = __fadd_rn(y, p.bias[p.outputs + column]);
    x = __fmul_rn(x, y);
  }
  if (p.softcap > 0.0f) x = __fmul_rn(p.softcap, tanhf(x / p.softcap));
  return x;
}

// out[token][column] where it is float.
__device__ __forceinline__ float* sum_address(const GemmArgs& p, int token, int column) {
  return static_cast<float*>(p.out) + token * p.out_stride + column;
}

// `old` is what out[token][column] has been, looked at only to raise it.
template <typename Element>
__device__ __forceinline__ void store_finished(const GemmArgs& p, int token, int column, float x, float old) {
  if (p.rounds) {
    store_element(static_cast<Element*>(p.out) + token * p.out_stride + column, x);
  } else {
    *sum_address(p, token, column) = p.accumulate ? __fadd_rn(old, x) : x;
  }
}

template <typename Element>
__device__ __forceinline__ void finish_element(const GemmArgs& p, int token, int column, float sum, float up) {
  if (token >= p.m || column >= p.outputs) return;
  const float x = finished(p, column, sum, up);
  store_finished<Element>(p, token, column, x, p.accumulate ? *sum_address(p, token, column) : 0.0f);
}

// One lane's four sums of a tile of 16 packed rows x 8 tokens, in the order of an m16n8 accumulator: packed rows g and
// g + 8 (values 0, 1 and 2, 3) of tokens `token` and `token + 1`. `tile_row` is the first packed row, `g` the lane / 4.
template <typename Element>
__device__ __forceinline__ void finish_tile(const GemmArgs& p, int tile_row, int g, int token, const float (&sum)[4]) {
  if (p.gated) {
    const int column = tile_row / 2 + g;
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      finish_element<Element>(p, token + i, column, i == 0 ? sum[0] : sum[1], i == 0 ? sum[2] : sum[3]);
    }
    return;
  }
#pragma unroll 1
  for (int i = 0; i < 4; ++i) {
    const float x = i < 2 ? (i == 0 ? sum[0] : sum[1]) : (i == 2 ? sum[2] : sum[3]);
    finish_element<Element>(p, token + i % 2, tile_row + g + i / 2 * 8, x, 0.0f);
  }
}

}  // namespace quire::cuda
