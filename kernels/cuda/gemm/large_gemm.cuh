// out[m, n] = epilogue(sum_k a[m, k] weight[n, k]) for bf16 and f16 and many tokens, with the bits of stream_gemm.cuh.
//
// The same sums in the same order: what there are four warps beside one another are here four walks one after the other
// (chunks w, w + 4, ... of a range), each into `acc` from zero; ((s0 + s1) + s2) + s3 is the sum of a range, ranges are
// added in ascending order. Every product is the same m16n8k16 with the same k in the same slot: a lane reads the 16
// bytes at row g, k = 8 t of a step of 32 k's and uses them as operands of two products (weight_layout.h says why).
// Grid: tiles of 128 packed rows x 128 tokens, one dimension; 16 blocks of tokens pass all strips of rows before the
//   next 16 do, so that blocks that run at once share weights and activations in the second-level cache.
// Block: eight warps, warp = (rows / 32, tokens / 64); a lane has 2 x 8 tiles of 16 x 8: 64 sums of a walk and 64 of a
//   range.
// Shared: a ring of three stages, each one chunk of 64 k's of both operands (32 KB), filled by cp.async in whole lines
//   of 128 bytes. In a step's half of a stage a row has 64 bytes, so the 8 rows of a fragment are 512 bytes in the
//   order of the lanes; the second step has neighbouring rows exchanged, so that the 8 lanes that write one line meet
//   eight different groups of banks. 96 KB, which every GPU from sm_80 on has. Where k is cut into ranges, 64 KB more
//   for their sums so far, each thread its own. The epilogue lays the sums out in the ring as [token][row], so that a
//   warp stores neighbouring columns.
// Barriers: L, a stage has landed for all (each waited for its own copies) and the one before it is read by all, so it
//   may be filled again. M, all have read the last stage before sums overwrite it. N, the sums of all warps are there.
//
// Flops: 2 m rows cols. Limits on one processor, a chunk (2.1 Mflop): tensor cores 512 cycles at an H100's full rate,
// shared memory 96 KB of fragments + 32 KB of copies = 1024 cycles, second-level cache 32 KB: 32 bytes a cycle. So
// shared memory bounds it at 2048 flop a cycle, 480 TFLOP/s for 132 processors at 1.78 GHz, and 5.5 TB/s from the
// second-level cache at 350 TFLOP/s. Prediction, not measured: 300 TFLOP/s on an H200 where the grid fills it, 40% of
// its tensor cores; wgmma would read weights from shared memory once for 256 tokens, and has sums of its own.
//   m = 2048, Llama-3.1-8B: qkv 344 us, o 229 us, gate-up 1.6 ms, down 802 us
#pragma once

#include "cuda/gemm/epilogue.cuh"
#include "cuda/gemm/gemm_args.h"
#include "cuda/gemm/large_gemm.h"
#include "cuda/gemm/stream_gemm.cuh"
#include "cuda/gemm/weight_layout.h"
#include "cuda/simt/simt.h"
#include "cuda/simt/tc.h"

namespace quire::cuda {

constexpr int kLargeThreads = 256;
constexpr int kLargeStages = 3;
constexpr int kLargeGroup = 16;  // blocks of tokens
constexpr int kLargeRowTiles = 2, kLargeTokenTiles = 8;
constexpr int kLargeTiles = kLargeRowTiles * kLargeTokenTiles;
constexpr int kLargeSteps = kChunk / kStepCols;
constexpr int kSumStride = kLargeRows + 4;  // 2 kSumStride = 8 mod 32 banks: what a warp hands over meets all of them

struct LargeGemmShared {
  union {
    struct {
      uint4 weights[kLargeStages][kLargeSteps * kLargeRows * 4];
      uint4 tokens[kLargeStages][kLargeSteps * kLargeTokens * 4];
    } ring;
    float sums[kLargeTokens][kSumStride];
  };
};

// Where k is cut into ranges.
struct LargeGemmSplitShared : LargeGemmShared {
  float4 totals[kLargeTiles][kLargeThreads];  // of the ranges so far
};
static_assert(sizeof(LargeGemmShared) <= 99 << 10 && sizeof(LargeGemmSplitShared) <= 163 << 10);  // sm_86, sm_80

// The chunks of k in the order in which they are summed: ranges, in a range four walks, in a walk every fourth chunk.
struct ChunkCursor {
  int walk = 0;  // of all ranges
  int chunk, end;

  __device__ __forceinline__ explicit ChunkCursor(const GemmArgs& p) {
    enter(p);
    skip_empty(p);
  }
  __device__ __forceinline__ bool at_end(const GemmArgs& p) const { return walk == p.num_splits * kGemmWarps; }
  __device__ __forceinline__ void advance(const GemmArgs& p) {
    chunk += kGemmWarps;
    skip_empty(p);
  }

 private:
  __device__ __forceinline__ void enter(const GemmArgs& p) {
    const int split = walk / kGemmWarps;
    chunk = p.num_chunks * split / p.num_splits + walk % kGemmWarps;
    end = p.num_chunks * (split + 1) / p.num_splits;
  }
  __device__ __forceinline__ void skip_empty(const GemmArgs& p) {
    while (!at_end(p) && chunk >= end) {
      ++walk;
      enter(p);
    }
  }
};

// What one thread copies of each stage: 16 bytes of every 32nd row of both operands.
struct LargeLoader {
  static constexpr int kRowsApart = kLargeThreads / 8;
  static constexpr int kCopies = kLargeRows / kRowsApart;
  static_assert(kLargeTokens == kLargeRows);

  const uint8_t* weight;  // row of the first copy, element `k` of chunk 0
  const uint8_t* a;
  int k;         // of the thread in a chunk
  int slot;      // in a stage
  int num_rows;  // how many of the copies are of rows that there are
  int num_tokens;

  __device__ __forceinline__ LargeLoader(const LargeGemmArgs& p, int row_begin, int token_begin) {
    const int thread = static_cast<int>(threadIdx.x), column = thread % 8, first = thread / 8, step = column / 4;
    const int row = row_begin + first, token = token_begin + first;
    k = 8 * column;
    slot = step * kLargeRows * 4 + (first ^ step) * 4 + column % 4;
    weight = static_cast<const uint8_t*>(p.gemm.weight) + 2 * (row * static_cast<int64_t>(p.gemm.padded_cols) + k);
    a = static_cast<const uint8_t*>(p.gemm.a) + 2 * (token * p.gemm.a_stride + k);
    num_rows = (p.packed_rows - row + kRowsApart - 1) / kRowsApart;
    num_tokens = (p.gemm.m - token + kRowsApart - 1) / kRowsApart;
  }

  __device__ __forceinline__ void load(uint4* to, const uint8_t* from, int64_t apart, int num_valid) const {
#pragma unroll
    for (int i = 0; i < kCopies; ++i, from += apart) simt::cp_async16(to + i * kRowsApart * 4, from, i < num_valid);
  }
  __device__ __forceinline__ void load_weights(const LargeGemmArgs& p, LargeGemmShared& s, int chunk, int stage) const {
    load(&s.ring.weights[stage][slot], weight + 2 * (chunk * kChunk), p.weight_bytes_apart,
         chunk * kChunk + k < p.gemm.padded_cols ? num_rows : 0);
  }
  __device__ __forceinline__ void load_tokens(const LargeGemmArgs& p, LargeGemmShared& s, int chunk, int stage) const {
    load(&s.ring.tokens[stage][slot], a + 2 * (chunk * kChunk), p.a_bytes_apart,
         chunk * kChunk + k < p.gemm.cols ? num_tokens : 0);
  }
};

// The products of one step of a stage, for the warp's 32 rows x 64 tokens.
template <typename Element>
__device__ __forceinline__ void multiply_step(const LargeGemmShared& s, int stage, int step,
                                              float (&acc)[kLargeTiles][4]) {
  using Tag = typename TensorCoreTag<Element>::Type;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const uint4* weights =
      &s.ring.weights[stage][(step * kLargeRows + warp / 2 * kLargeRowTiles * 16) * 4 + (lane ^ step * 4)];
  const uint4* tokens =
      &s.ring.tokens[stage][(step * kLargeTokens + warp % 2 * kLargeTokenTiles * 8) * 4 + (lane ^ step * 4)];
  uint4 low[kLargeRowTiles], high[kLargeRowTiles];
#pragma unroll
  for (int r = 0; r < kLargeRowTiles; ++r) low[r] = weights[r * 64], high[r] = weights[r * 64 + 32];
#pragma unroll
  for (int i = 0; i < kLargeTokenTiles; i += 2) {
    const uint4 b[2] = {tokens[i * 32], tokens[i * 32 + 32]};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int r = 0; r < kLargeRowTiles; ++r) {
          const uint32_t first[4] = {low[r].x, high[r].x, low[r].y, high[r].y};
          const uint32_t second[4] = {low[r].z, high[r].z, low[r].w, high[r].w};
          float (&sum)[4] = acc[r * kLargeTokenTiles + i + j];
          if (half == 0) {
            simt::mma_m16n8k16(sum, first, {b[j].x, b[j].y}, Tag{});
          } else {
            simt::mma_m16n8k16(sum, second, {b[j].z, b[j].w}, Tag{});
          }
        }
      }
    }
  }
}

// range = walk 0 ? acc : range + acc
__device__ __forceinline__ void add_walk(float (&range)[kLargeTiles][4], const float (&acc)[kLargeTiles][4], int walk) {
#pragma unroll
  for (int i = 0; i < kLargeTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) range[i][j] = walk == 0 ? acc[i][j] : __fadd_rn(range[i][j], acc[i][j]);
  }
}

// Adds the ranges before to `range`, and leaves the sum for the ranges behind. A thread meets its own sums alone.
__device__ __forceinline__ void add_range(float (&range)[kLargeTiles][4], bool is_first, bool is_last) {
  auto& s = simt::block_shared<LargeGemmSplitShared>();
#pragma unroll
  for (int i = 0; i < kLargeTiles; ++i) {
    float (&x)[4] = range[i];
    float4* total = &s.totals[i][threadIdx.x];
    if (!is_first) {
      const float4 before = *total;
      x[0] = __fadd_rn(before.x, x[0]);
      x[1] = __fadd_rn(before.y, x[1]);
      x[2] = __fadd_rn(before.z, x[2]);
      x[3] = __fadd_rn(before.w, x[3]);
    }
    if (!is_last) *total = make_float4(x[0], x[1], x[2], x[3]);
  }
}

// All ranges of k, in order. `range` ends as the sums of this lane's tiles.
template <typename Element>
__device__ __forceinline__ void sum_all(const LargeGemmArgs& args, LargeGemmShared& s, const LargeLoader& loader,
                                        float (&range)[kLargeTiles][4]) {
  const GemmArgs& p = args.gemm;
  ChunkCursor next(p);
  {
    ChunkCursor ahead = next;
    for (int stage = 0; stage < kLargeStages - 1 && !ahead.at_end(p); ++stage, ahead.advance(p)) {
      loader.load_weights(args, s, ahead.chunk, stage);
    }
  }
  simt::grid_dependency_launch();
  simt::grid_dependency_wait();
  for (int stage = 0; stage < kLargeStages - 1; ++stage) {
    if (!next.at_end(p)) {
      loader.load_tokens(args, s, next.chunk, stage);
      next.advance(p);
    }
    simt::cp_async_commit();
  }
  int stage = 0, refill = kLargeStages - 1;
#pragma unroll 1
  for (int split = 0; split < p.num_splits; ++split) {
    const int end = p.num_chunks * (split + 1) / p.num_splits;
#pragma unroll 1
    for (int walk = 0; walk < kGemmWarps; ++walk) {
      float acc[kLargeTiles][4] = {};
#pragma unroll 1
      for (int chunk = p.num_chunks * split / p.num_splits + walk; chunk < end; chunk += kGemmWarps) {
        simt::cp_async_wait<kLargeStages - 2>();
        __syncthreads();  // L
        if (!next.at_end(p)) {
          loader.load_weights(args, s, next.chunk, refill);
          loader.load_tokens(args, s, next.chunk, refill);
          next.advance(p);
        }
        simt::cp_async_commit();
        multiply_step<Element>(s, stage, 0, acc);
        if (chunk * kChunk + kStepCols < p.padded_cols) multiply_step<Element>(s, stage, 1, acc);
        refill = stage;
        stage = stage + 1 == kLargeStages ? 0 : stage + 1;
      }
      add_walk(range, acc, walk);
    }
    if (p.num_splits > 1) add_range(range, split == 0, split + 1 == p.num_splits);
  }
}

// Stores the tile's columns `column_begin` + lane + 32 i of every eighth token. The first pass finishes in place what a
// lane will store itself; in the second sixteen reads of the residual are under way at a time.
template <typename Element>
__device__ __forceinline__ void store_tile(const GemmArgs& p, LargeGemmShared& s, int column_begin, int token_begin) {
  constexpr int kWarps = kLargeThreads / 32, kBatch = 4;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int num_columns = min(p.gated ? kLargeRows / 2 : kLargeRows, p.outputs - column_begin);
  const int num_tokens = min(kLargeTokens, p.m - token_begin);
  const auto place = [&](int column) { return p.gated ? column / 8 * 16 + column % 8 : column; };
  for (int column = lane; column < num_columns; column += 32) {
    const int row = place(column);
    for (int token = warp; token < num_tokens; token += kWarps) {
      float* sum = &s.sums[token][row];
      *sum = finished(p, column_begin + column, sum[0], p.gated ? sum[8] : 0.0f);
    }
  }
  for (int token = warp; token < num_tokens; token += kWarps * kBatch) {
    for (int column = lane; column < num_columns; column += 32) {
      float old[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int at = token + i * kWarps;
        old[i] = p.accumulate && at < num_tokens ? *sum_address(p, token_begin + at, column_begin + column) : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int at = token + i * kWarps;
        if (at >= num_tokens) break;
        store_finished<Element>(p, token_begin + at, column_begin + column, s.sums[at][place(column)], old[i]);
      }
    }
  }
}

template <typename Element>
__global__ void __launch_bounds__(kLargeThreads, 1) large_gemm_kernel(const __grid_constant__ LargeGemmArgs args) {
  auto& s = simt::block_shared<LargeGemmShared>();
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int block = static_cast<int>(blockIdx.x), group = block / (kLargeGroup * args.strips);
  const int in_group = block - group * kLargeGroup * args.strips;
  const int width = min(kLargeGroup, args.token_blocks - group * kLargeGroup);
  const int row_begin = in_group / width * kLargeRows;
  const int token_begin = (group * kLargeGroup + in_group % width) * kLargeTokens;

  float sums[kLargeTiles][4];
  sum_all<Element>(args, s, LargeLoader(args, row_begin, token_begin), sums);
  __syncthreads();  // M
  const int row = warp / 2 * kLargeRowTiles * 16 + lane / 4;
  const int token = warp % 2 * kLargeTokenTiles * 8 + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < kLargeTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      s.sums[token + i % kLargeTokenTiles * 8 + j % 2][row + i / kLargeTokenTiles * 16 + j / 2 * 8] = sums[i][j];
    }
  }
  __syncthreads();  // N
  store_tile<Element>(args.gemm, s, args.gemm.gated ? row_begin / 2 : row_begin, token_begin);
}

}  // namespace quire::cuda
