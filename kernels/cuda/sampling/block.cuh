// What the 256 threads of a block compute together: reductions and scans in fixed orders, a sort, a crossing.
//
// Every function starts when all threads have called it and may be called again at once: the barrier at its end (or
// the one before the next write) protects the scratch memory.
#pragma once

#include "cuda/sampling/keys.cuh"
#include "cuda/sampling/workspace.h"

namespace quire::cuda {

struct BlockScratch {
  uint64_t warps[kSamplingWarps];
  uint64_t result[2];
};

__device__ inline uint64_t warp_max(uint64_t key) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    key = larger(key, __shfl_xor_sync(~0u, key, distance));
  }
  return key;
}

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, distance));
  return x;
}

__device__ inline uint64_t block_max(uint64_t key, BlockScratch& scratch) {
  key = warp_max(key);
  if (threadIdx.x % 32 == 0) scratch.warps[threadIdx.x / 32] = key;
  __syncthreads();
  key = scratch.warps[0];
#pragma unroll
  for (int warp = 1; warp < kSamplingWarps; ++warp) key = larger(key, scratch.warps[warp]);
  __syncthreads();
  return key;
}

// Lanes by halving distance, then the warps in turn.
__device__ inline float block_sum(float x, BlockScratch& scratch) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
  if (threadIdx.x % 32 == 0) scratch.warps[threadIdx.x / 32] = __float_as_uint(x);
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kSamplingWarps; ++warp) sum += __uint_as_float(static_cast<uint32_t>(scratch.warps[warp]));
  __syncthreads();
  return sum;
}

struct Scan {
  uint64_t before;  // sum of the threads before this one
  uint64_t total;
};

__device__ inline Scan block_scan(uint64_t x, BlockScratch& scratch) {
  uint64_t through = x;
#pragma unroll
  for (unsigned distance = 1; distance < 32; distance *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, through, distance);
    if (threadIdx.x % 32 >= distance) through += other;
  }
  if (threadIdx.x % 32 == 31) scratch.warps[threadIdx.x / 32] = through;
  __syncthreads();
  uint64_t before_warp = 0, total = 0;
#pragma unroll
  for (unsigned warp = 0; warp < kSamplingWarps; ++warp) {
    if (warp == threadIdx.x / 32) before_warp = total;
    total += scratch.warps[warp];
  }
  __syncthreads();
  return {before_warp + through - x, total};
}

struct Crossing {
  int index;        // the first whose sum with all before it reaches the target; `size` when none does
  uint64_t before;  // the sum of those before it
};

// Of the weights weight_at(i), i in [0, size), each asked for by one thread. `size` is a multiple of the threads.
template <typename WeightAt>
__device__ inline Crossing find_crossing(int size, uint64_t target, const WeightAt& weight_at, BlockScratch& scratch) {
  const int share = size / kSamplingThreads, begin = static_cast<int>(threadIdx.x) * share;
  uint64_t sum = 0;
  for (int i = begin; i < begin + share; ++i) sum += weight_at(i);
  const Scan scan = block_scan(sum, scratch);
  if (threadIdx.x == 0) {
    scratch.result[0] = static_cast<uint64_t>(size);
    scratch.result[1] = scan.total;
  }
  __syncthreads();
  if (scan.before < target && scan.before + sum >= target) {  // true in one thread at most
    uint64_t before = scan.before;
    int i = begin;
    for (; before + weight_at(i) < target; ++i) before += weight_at(i);
    scratch.result[0] = static_cast<uint64_t>(i);
    scratch.result[1] = before;
  }
  __syncthreads();
  return {static_cast<int>(scratch.result[0]), scratch.result[1]};  // the next scan's barriers protect it
}

// Sorts keys[0, count), largest first (bitonic); keys has room for the next power of two. A barrier before and after.
__device__ inline void sort_falling(uint64_t* keys, int count) {
  int size = 1;
  while (size < count) size *= 2;
  for (int i = count + static_cast<int>(threadIdx.x); i < size; i += kSamplingThreads) keys[i] = 0;
  __syncthreads();
  for (int run = 2; run <= size; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      for (int pair = static_cast<int>(threadIdx.x); pair < size / 2; pair += kSamplingThreads) {
        const int low = pair / distance * distance * 2 + pair % distance, high = low + distance;
        const uint64_t a = keys[low], b = keys[high];
        if ((a < b) == ((low & run) == 0)) {
          keys[low] = b;
          keys[high] = a;
        }
      }
      __syncthreads();
    }
  }
}

// The mass of a logit as an integer, so that sums have the same bits in every order: exp(x - max) in units of 2^-40.
// Sums of 2^23 of them fit 64 bits.
__device__ inline uint64_t fixed_mass(float x, float max) { return static_cast<uint64_t>(expf(x - max) * 0x1p40f); }

// What top_p leaves: tokens stay while the mass before them is below the returned one.
__device__ inline uint64_t nucleus_mass(float top_p, uint64_t total) {
  const double needed = ceil(static_cast<double>(top_p) * static_cast<double>(total));
  return needed < 1.0 ? 1 : static_cast<uint64_t>(needed);
}

}  // namespace quire::cuda
