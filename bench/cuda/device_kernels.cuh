// The benchmark's own kernels: inputs, and the ceiling of reading. One thread works on 16 bytes at a time,
// grid-strided.
#pragma once

#include "cuda/simt/simt.h"

namespace quire::bench {

struct FillArgs {
  void* to;
  int64_t num_vectors;  // of 16 bytes
  float deviation;
  uint64_t seed;
};

__device__ __forceinline__ uint64_t mix_bits(uint64_t x) {
  x = (x ^ x >> 33) * 0xff51afd7ed558ccdull;
  x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53ull;
  return x ^ x >> 33;
}

// Two bf16 values in (-1, -2^-7] or [2^-7, 1) from 32 random bits: sign, four bits of mantissa, seven exponents.
__device__ __forceinline__ uint32_t random_bf16_pair(uint32_t bits) {
  const uint32_t exponents = ((bits >> 16 & 7u) % 7u) << 23 | ((bits & 7u) % 7u) << 7;
  return (bits & 0x80788078u) + 0x3c003c00u + exponents;
}

__global__ void __launch_bounds__(256) fill_uniform_kernel(const __grid_constant__ FillArgs p) {
  auto* const to = static_cast<uint4*>(p.to);
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < p.num_vectors; i += stride) {
    const uint64_t low = mix_bits(2 * i + p.seed), high = mix_bits(2 * i + 1 + p.seed);
    to[i] =
        make_uint4(random_bf16_pair(static_cast<uint32_t>(low)), random_bf16_pair(static_cast<uint32_t>(low >> 32)),
                   random_bf16_pair(static_cast<uint32_t>(high)), random_bf16_pair(static_cast<uint32_t>(high >> 32)));
  }
}

// The sum of four uniform values of 16 bits, scaled to the deviation asked for.
__device__ __forceinline__ float near_normal(uint64_t bits, float deviation) {
  float sum = -2.0f;
  for (int i = 0; i < 4; i++) sum += static_cast<float>(bits >> 16 * i & 0xffff) * 0x1p-16f;
  return sum * 1.7320508f * deviation;
}

__global__ void __launch_bounds__(256) fill_normal_kernel(const __grid_constant__ FillArgs p) {
  auto* const to = static_cast<float4*>(p.to);
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < p.num_vectors; i += stride) {
    float value[4];
    for (int j = 0; j < 4; j++) value[j] = near_normal(mix_bits(4 * i + j + p.seed), p.deviation);
    to[i] = make_float4(value[0], value[1], value[2], value[3]);
  }
}

struct ReadArgs {
  const uint4* from;
  int64_t num_vectors;
  uint32_t* sink;  // written if the sum is one in 2^32
};

__global__ void __launch_bounds__(512) read_kernel(const __grid_constant__ ReadArgs p) {
  constexpr int kInFlight = 8;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  uint32_t sum = 0;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < p.num_vectors; i += stride * kInFlight) {
    uint4 value[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; j++) {
      value[j] =
          i + j * stride < p.num_vectors ? simt::load_streaming(p.from + i + j * stride) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < kInFlight; j++) sum ^= value[j].x ^ value[j].y ^ value[j].z ^ value[j].w;
  }
  if (sum == 0x9e3779b9u) *p.sink = sum;
}

}  // namespace quire::bench
