// Tokens as 64-bit keys, and the random numbers of a token.
//
// key = (ordered bits of the value) * 2^32 + (2^32 - 1 - id): a larger key is a larger value, or an equal one with a
// lower id, which is the order of all decisions. -0 counts as 0. Keys of different tokens differ.
// Noise has the bits of params/philox.h, whatever the compiler contracts: every rounding is written as an intrinsic.
#pragma once

#include "cuda/simt/simt.h"
#include "params/philox.h"

namespace quire::cuda {

constexpr float kLowest = -__builtin_inff();

__device__ inline uint64_t make_key(float value, int32_t id) {
  const uint32_t bits = __float_as_uint(__fadd_rn(value, 0.0f));
  const uint32_t ordered = bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
  return uint64_t{ordered} << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
__device__ inline float value_of(uint64_t key) {
  const auto ordered = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(ordered ^ (ordered >> 31 ? 0x80000000u : 0xffffffffu));
}
__device__ inline int32_t id_of(uint64_t key) { return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key)); }
__device__ inline uint64_t larger(uint64_t a, uint64_t b) { return a < b ? b : a; }

// fixed_log of philox.h.
__device__ inline float device_log(float x) {
  const uint32_t bits = __float_as_uint(x);
  const int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
  const float m = __uint_as_float(bits - (static_cast<uint32_t>(exponent) << 23));
  const float s = __fdiv_rn(__fadd_rn(m, -1.0f), __fadd_rn(m, 1.0f));
  const float z = __fmul_rn(s, s);
  float p = 0.22222222f;
  p = __fadd_rn(__fmul_rn(p, z), 0.28571429f);
  p = __fadd_rn(__fmul_rn(p, z), 0.4f);
  p = __fadd_rn(__fmul_rn(p, z), 0.66666667f);
  p = __fadd_rn(__fmul_rn(p, z), 2.0f);
  return __fadd_rn(__fmul_rn(static_cast<float>(exponent), 0.69314718f), __fmul_rn(s, p));
}

// gumbel_from_bits of philox.h.
__device__ inline float device_gumbel(uint32_t bits) {
  const float u = __fmul_rn(__fadd_rn(static_cast<float>(bits >> 9), 0.5f), 0x1p-23f);
  return -device_log(-device_log(u));
}

// Never below device_gumbel, in six instructions instead of sixty: -log(-log(u)) <= -log(1 - u), and a float's bits
// read as an integer are a chord below the logarithm. The margin is for the roundings of device_gumbel.
__device__ inline float gumbel_upper_bound(uint32_t bits) {
  const float rest = static_cast<float>(0x7fffffu - (bits >> 9)) + 0.5f;  // (1 - u) * 2^23
  const float log2_of_rest = __uint2float_rn(__float_as_uint(rest)) * 0x1p-23f - 127.0f;
  return (23.0f - log2_of_rest) * 0.69314718f + 1e-3f;
}

__device__ inline Philox4 noise_bits(uint64_t seed, uint32_t output_index, int32_t group) {
  return philox_4x32_10({static_cast<uint32_t>(group), output_index, 0, 0}, static_cast<uint32_t>(seed),
                        static_cast<uint32_t>(seed >> 32));
}

}  // namespace quire::cuda
