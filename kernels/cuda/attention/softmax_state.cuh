// The softmax of a set of keys as a value {max, sum, out}: sum = sum of 2^(score - max), out = sum of
// 2^(score - max) v; scores carry the factor log2(e). States of disjoint sets merge into the state of their union;
// {-infinity, 0, 0} is neutral. Merging from left to right in key order is the definition of the result, whoever
// computed the parts: within a block while it walks the keys, or from memory when blocks shared them.
#pragma once

#include "cuda/simt/simt.h"

namespace quire::cuda {

constexpr float kLog2e = 1.4426950408889634f;

struct MergeFactors {
  float max;          // of both
  float left, right;  // what multiplies sums and outputs
};

__device__ __forceinline__ MergeFactors merge_factors(float left_max, float left_sum, float right_max,
                                                      float right_sum) {
  if (right_sum == 0.0f) return {left_max, 1.0f, 0.0f};
  if (left_sum == 0.0f) return {right_max, 0.0f, 1.0f};
  const float max = fmaxf(left_max, right_max);
  return {max, simt::exp2_approx(left_max - max), simt::exp2_approx(right_max - max)};
}

// The product is rounded before the sum, by name, so that no compiler decides.
__device__ __forceinline__ float merge(const MergeFactors& factors, float left, float right) {
  return fmaf(left, factors.left, __fmul_rn(right, factors.right));
}

// cap * tanh(x / cap) to about 1e-7 of the cap, by one exponential.
__device__ __forceinline__ float soft_cap(float x, float cap) {
  const float power = simt::exp2_approx(__fmul_rn(__fdividef(x, cap), 2.0f * kLog2e));
  return fmaf(-2.0f * cap, __fdividef(1.0f, power + 1.0f), cap);
}

// What `out` is multiplied with at last: 1 / sum, a key without a value (the sink) included. 0 for a row that sees
// nothing.
__device__ __forceinline__ float final_factor(float max, float sum, bool has_sink, float sink) {
  if (!has_sink) return sum > 0.0f ? 1.0f / sum : 0.0f;
  if (sum == 0.0f) return 0.0f;
  const float scaled = __fmul_rn(sink, kLog2e);
  const float top = fmaxf(max, scaled);
  const float left = simt::exp2_approx(max - top);
  return left / fmaf(sum, left, simt::exp2_approx(scaled - top));
}

}  // namespace quire::cuda
