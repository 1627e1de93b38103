// out[m, n] = epilogue(sum_k a[m, k] weight[n, k]) for bf16 and f16: the weights stream through tensor cores once.
//
// Operands are swapped: 16 weight rows are the rows of an m16n8k16 product, 8 tokens its columns, so one token wastes
// seven columns of arithmetic but no byte.
// Grid: x = block of kTokens tokens, y = strip of kRows packed rows, z = range of k (where a workspace lets ranges run
//   side by side). Block: four warps; warp w sums every fourth chunk of 64 k's of the range for the whole tile
//   (weight_layout.h has the order). Lane (g, t) = (lane / 4, lane % 4) holds rows g, g + 8 and token g of each tile,
//   elements 8 t .. 8 t + 7 of a step of 32 k's; two products eat a step.
// Shared: `ring`, kStages stages of 16-byte slots, each written (cp.async) and read by the same lane: no barrier guards
//   it, only the lane's own wait. `sums`, where the warps hand over their accumulators, four tiles at a time: a barrier
//   before it is written again (all have read the last ones), a barrier after (all are there).
// With a workspace the last block of a strip adds the ranges, in their order, whichever block that is.
// Programmatic dependent launch: weights of the first stages are asked for before the wait, activations after it. So
//   the kernel before must not be the one that wrote the weights, unless it lets this one start at its end only.
//
// Bytes: padded_rows x padded_cols x 2 once, plus the activations once a strip: from the second-level cache, m / kRows
// of the weight's bytes, which is why kRows grows with m (at most a quarter up to m = 16). Flops: 2 m rows cols.
// In flight on one processor: kStages - 1 stages x 16 KB of weights x resident blocks (3, 3, 3, 2, 2 for the five
// tiles) = 96, 96, 96, 64, 64 KB; 4.3 TB/s on 132 processors with 0.8 us of latency need 26 KB. Prediction, not
// measured: Llama-3.1-8B on an H200 (4.3 TB/s) at 90% of the limit for m <= 16, 60% at m = 64 (there the activations
// double the traffic of the second-level cache):
//   qkv 6144 x 4096   50 MB  13 us    o 4096 x 4096     34 MB   9 us    gate-up 28672 x 4096   235 MB  61 us
//   down 4096 x 14336 117 MB 30 us    head 128256 x 4096 1051 MB 272 us   (m = 64: 19, 13, 91, 46, 407 us)
#pragma once

#include "cuda/gemm/epilogue.cuh"
#include "cuda/gemm/gemm_args.h"
#include "cuda/gemm/weight_layout.h"
#include "cuda/simt/simt.h"
#include "cuda/simt/tc.h"

namespace quire::cuda {

constexpr int kGemmStages = 3;
constexpr size_t kProcessorSharedBytes = 228 << 10;  // of an H100; a block takes 1 KB more than it asks for
constexpr int kStepCols = 32;

template <typename Element>
struct TensorCoreTag;
template <>
struct TensorCoreTag<__nv_bfloat16> {
  using Type = simt::bf16_tag;
};
template <>
struct TensorCoreTag<__half> {
  using Type = simt::f16_tag;
};

template <int kRowTilesT, int kTokenTilesT>
struct GemmTile {
  static constexpr int kRowTiles = kRowTilesT;
  static constexpr int kTokenTiles = kTokenTilesT;
  static constexpr int kRows = 16 * kRowTiles;
  static constexpr int kTokens = 8 * kTokenTiles;
  static constexpr int kTiles = kRowTiles * kTokenTiles;
  static constexpr int kPassTiles = kTiles < kGemmWarps ? kTiles : kGemmWarps;  // summed over the warps at a time
  static constexpr int kPasses = kTiles / kPassTiles;
  static constexpr int kSteps = 4 / kRowTiles;  // of a stage: 4 KB of weights a warp for every tile
  static constexpr int kWeightSlots = 2 * kRowTiles;
  static constexpr int kStepSlots = kWeightSlots + kTokenTiles;
  static constexpr int kBlocksPerProcessor = kTokenTiles <= 2 ? 3 : 2;
};

template <typename Tile>
struct GemmShared {
  uint4 ring[kGemmStages][kGemmWarps][Tile::kSteps * Tile::kStepSlots][32];
  float4 sums[kGemmWarps][Tile::kPassTiles][32];
};

// The steps of one warp in one range of k.
struct WarpSlice {
  int first_k;
  int steps;

  __device__ __forceinline__ int k_of(int step) const {
    return first_k + step / 2 * (kGemmWarps * kChunk) + step % 2 * kStepCols;
  }
};

__device__ __forceinline__ WarpSlice slice_of(const GemmArgs& p, int split, int warp) {
  const int first = p.num_chunks * split / p.num_splits + warp;
  const int end = p.num_chunks * (split + 1) / p.num_splits;
  const int chunks = end > first ? (end - first + kGemmWarps - 1) / kGemmWarps : 0;
  const bool has_half = chunks > 0 && (first + (chunks - 1) * kGemmWarps + 1) * kChunk > p.padded_cols;
  return {first * kChunk, chunks * 2 - (has_half ? 1 : 0)};
}

// The stages of a warp one after the other, over all ranges of its block.
template <typename Tile>
struct StageCursor {
  int split, split_end, warp;
  int step = 0;
  WarpSlice slice;

  __device__ __forceinline__ StageCursor(const GemmArgs& p, int split_begin, int split_end, int warp)
      : split(split_begin), split_end(split_end), warp(warp), slice(slice_of(p, split_begin, warp)) {
    skip_empty(p);
  }
  __device__ __forceinline__ bool at_end() const { return split == split_end; }
  __device__ __forceinline__ void advance(const GemmArgs& p) {
    step += Tile::kSteps;
    skip_empty(p);
  }
  __device__ __forceinline__ void skip_empty(const GemmArgs& p) {
    while (split < split_end && step >= slice.steps) {
      step = 0;
      if (++split < split_end) slice = slice_of(p, split, warp);
    }
  }
};

// One lane's part of the ring and of the operands.
template <typename Element, typename Tile>
struct GemmLane {
  uint4* ring;            // slot 0 of stage 0 of this lane; slots are 32 apart
  const Element* weight;  // row g of the strip, element 8 t
  const Element* a;       // row of token g, element 8 t
  int token;              // g of the first tile
  int t;

  static constexpr int kStageUint4s = kGemmWarps * Tile::kSteps * Tile::kStepSlots * 32;

  __device__ __forceinline__ uint4* slot(int stage, int step, int index) const {
    return ring + stage * kStageUint4s + (step * Tile::kStepSlots + index) * 32;
  }

  __device__ __forceinline__ void load_weights(const GemmArgs& p, const StageCursor<Tile>& cursor, int stage,
                                               simt::CachePolicy policy) const {
    if (cursor.at_end()) return;
#pragma unroll
    for (int s = 0; s < Tile::kSteps; ++s) {
      if (cursor.step + s >= cursor.slice.steps) break;
      const Element* from = weight + cursor.slice.k_of(cursor.step + s);
#pragma unroll
      for (int i = 0; i < Tile::kWeightSlots; ++i) {
        simt::cp_async16_hinted(slot(stage, s, i), from + static_cast<int64_t>(i * 8) * p.padded_cols, policy);
      }
    }
  }

  // Elements [k + 8 t, + 8) of a row whose start is not at 16 bytes, or that ends inside; zeros beyond.
  __device__ __forceinline__ uint4 gather(const GemmArgs& p, const Element* from, int k) const {
    uint32_t pairs[4] = {0, 0, 0, 0};
    const auto* bits = reinterpret_cast<const uint16_t*>(from);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (k + 8 * t + i < p.cols) pairs[i / 2] |= static_cast<uint32_t>(bits[i]) << (i % 2 * 16);
    }
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }

  __device__ __forceinline__ void load_activations(const GemmArgs& p, const StageCursor<Tile>& cursor,
                                                   int stage) const {
    if (cursor.at_end()) return;
#pragma unroll
    for (int s = 0; s < Tile::kSteps; ++s) {
      if (cursor.step + s >= cursor.slice.steps) break;
      const int k = cursor.slice.k_of(cursor.step + s);
#pragma unroll
      for (int i = 0; i < Tile::kTokenTiles; ++i) {
        const bool is_valid = token + i * 8 < p.m && k + 8 * t < p.cols;
        const Element* from = is_valid ? a + i * 8 * p.a_stride + k : static_cast<const Element*>(p.a);
        uint4* to = slot(stage, s, Tile::kWeightSlots + i);
        if (p.a_aligned) {
          simt::cp_async16(to, from, is_valid);
        } else {
          *to = is_valid ? gather(p, from, k) : make_uint4(0, 0, 0, 0);
        }
      }
    }
  }

  // The products of one step; an accumulator takes its k's in the order of the steps.
  __device__ __forceinline__ void multiply(int stage, int step, float (&acc)[Tile::kTiles][4]) const {
    using Tag = typename TensorCoreTag<Element>::Type;
    uint4 b[Tile::kTokenTiles];
#pragma unroll
    for (int i = 0; i < Tile::kTokenTiles; ++i) b[i] = *slot(stage, step, Tile::kWeightSlots + i);
#pragma unroll
    for (int r = 0; r < Tile::kRowTiles; ++r) {
      const uint4 low = *slot(stage, step, 2 * r), high = *slot(stage, step, 2 * r + 1);
      const uint32_t first[4] = {low.x, high.x, low.y, high.y};
      const uint32_t second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
      for (int i = 0; i < Tile::kTokenTiles; ++i) {
        simt::mma_m16n8k16(acc[r * Tile::kTokenTiles + i], first, {b[i].x, b[i].y}, Tag{});
      }
#pragma unroll
      for (int i = 0; i < Tile::kTokenTiles; ++i) {
        simt::mma_m16n8k16(acc[r * Tile::kTokenTiles + i], second, {b[i].z, b[i].w}, Tag{});
      }
    }
  }
};

// Adds the four warps' accumulators in warp order. Tile pass * kPassTiles + warp ends up with that warp, each lane
// keeping the elements it has in the accumulator; `total` then gets (or, after the first range, is raised by) the sum.
template <typename Tile>
__device__ __forceinline__ void add_warps(GemmShared<Tile>& s, const float (&acc)[Tile::kTiles][4],
                                          float (&total)[Tile::kPasses][4], int range, int warp, int lane) {
#pragma unroll
  for (int pass = 0; pass < Tile::kPasses; ++pass) {
    if (range + pass > 0) __syncthreads();
#pragma unroll
    for (int i = 0; i < Tile::kPassTiles; ++i) {
      const float (&x)[4] = acc[pass * Tile::kPassTiles + i];
      s.sums[warp][i][lane] = make_float4(x[0], x[1], x[2], x[3]);
    }
    __syncthreads();
    if (warp >= Tile::kPassTiles) continue;
    float4 sum = s.sums[0][warp][lane];
#pragma unroll
    for (int w = 1; w < kGemmWarps; ++w) {
      const float4 x = s.sums[w][warp][lane];
      sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
    }
    const float values[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) total[pass][i] = range == 0 ? values[i] : total[pass][i] + values[i];
  }
}

// Leaves this range's sums in the workspace. True in the block that came last: its `total` then has all ranges, added
// in their order.
template <typename Tile>
__device__ __forceinline__ bool add_ranges(const GemmArgs& p, float (&total)[Tile::kPasses][4], int warp, int lane) {
  const auto at = [&](int split, int pass) {
    const int64_t strip = static_cast<int64_t>(split) * gridDim.y + blockIdx.y;
    return p.partials + (strip * Tile::kTiles + pass * Tile::kPassTiles + warp) * 128 + lane;
  };
  if (warp < Tile::kPassTiles) {
#pragma unroll
    for (int pass = 0; pass < Tile::kPasses; ++pass) {
      float* to = at(static_cast<int>(blockIdx.z), pass);
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i * 32] = total[pass][i];
    }
  }
  __threadfence();
  __syncthreads();  // all of the block's sums are visible before it is counted
  bool is_last = false;
  if (threadIdx.x == 0) {
    is_last = atomicAdd(p.counters + blockIdx.y, 1u) == static_cast<uint32_t>(p.num_splits - 1);
    if (is_last) p.counters[blockIdx.y] = 0;  // for the next launch
  }
  if (!__syncthreads_or(is_last)) return false;
  __threadfence();
  if (warp >= Tile::kPassTiles) return true;
#pragma unroll
  for (int pass = 0; pass < Tile::kPasses; ++pass) {
    for (int split = 0; split < p.num_splits; ++split) {
      const float* from = at(split, pass);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float x = __ldcg(from + i * 32);  // not from the first-level cache, which other blocks do not update
        total[pass][i] = split == 0 ? x : total[pass][i] + x;
      }
    }
  }
  return true;
}

// All stages of the block's ranges. `total` gets the sums of the tiles this warp will finish.
template <typename Element, typename Tile>
__device__ __forceinline__ void sum_ranges(const GemmArgs& p, GemmShared<Tile>& s, const GemmLane<Element, Tile>& own,
                                           int split_begin, int split_end, float (&total)[Tile::kPasses][4]) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const simt::CachePolicy policy = simt::evict_first_policy();
  StageCursor<Tile> next(p, split_begin, split_end, warp);
  {
    StageCursor<Tile> ahead = next;
    for (int stage = 0; stage < kGemmStages - 1; ++stage) {
      own.load_weights(p, ahead, stage, policy);
      if (!ahead.at_end()) ahead.advance(p);
    }
  }
  simt::grid_dependency_launch();  // once every block is here, the next product may ask for its first weights
  simt::grid_dependency_wait();
  for (int stage = 0; stage < kGemmStages - 1; ++stage) {
    own.load_activations(p, next, stage);
    simt::cp_async_commit();
    if (!next.at_end()) next.advance(p);
  }
  int stage = 0, refill = kGemmStages - 1;
  for (int split = split_begin; split < split_end; ++split) {
    float acc[Tile::kTiles][4] = {};
    const int steps = slice_of(p, split, warp).steps;
    for (int step = 0; step < steps; step += Tile::kSteps) {
      own.load_weights(p, next, refill, policy);
      own.load_activations(p, next, refill);
      simt::cp_async_commit();
      if (!next.at_end()) next.advance(p);
      simt::cp_async_wait<kGemmStages - 1>();
#pragma unroll
      for (int i = 0; i < Tile::kSteps; ++i) {
        if (step + i < steps) own.multiply(stage, i, acc);
      }
      refill = stage;
      stage = stage + 1 == kGemmStages ? 0 : stage + 1;
    }
    add_warps<Tile>(s, acc, total, split - split_begin, warp, lane);
  }
}

template <typename Element, int kRowTiles, int kTokenTiles>
__global__ void __launch_bounds__(32 * kGemmWarps, GemmTile<kRowTiles, kTokenTiles>::kBlocksPerProcessor)
    stream_gemm_kernel(const __grid_constant__ GemmArgs p) {
  using Tile = GemmTile<kRowTiles, kTokenTiles>;
  static_assert((sizeof(GemmShared<Tile>) + 1024) * Tile::kBlocksPerProcessor <= kProcessorSharedBytes);
  auto& s = simt::block_shared<GemmShared<Tile>>();
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int g = lane / 4, t = lane % 4;
  const int token_begin = static_cast<int>(blockIdx.x) * Tile::kTokens;
  const int row_begin = static_cast<int>(blockIdx.y) * Tile::kRows;

  GemmLane<Element, Tile> own;
  own.ring = &s.ring[0][warp][0][lane];
  own.weight = static_cast<const Element*>(p.weight) + static_cast<int64_t>(row_begin + g) * p.padded_cols + 8 * t;
  own.a = static_cast<const Element*>(p.a) + (token_begin + g) * p.a_stride + 8 * t;
  own.token = token_begin + g;
  own.t = t;

  const bool is_split = p.partials != nullptr;
  const int split_begin = is_split ? static_cast<int>(blockIdx.z) : 0;
  float total[Tile::kPasses][4];
  sum_ranges<Element, Tile>(p, s, own, split_begin, is_split ? split_begin + 1 : p.num_splits, total);
  if (is_split && !add_ranges<Tile>(p, total, warp, lane)) return;
  if (warp >= Tile::kPassTiles) return;
#pragma unroll
  for (int pass = 0; pass < Tile::kPasses; ++pass) {
    const int tile = pass * Tile::kPassTiles + warp;
    finish_tile<Element>(p, row_begin + tile / kTokenTiles * 16, g, token_begin + tile % kTokenTiles * 8 + 2 * t,
                         total[pass]);
  }
}

}  // namespace quire::cuda
