// Attention of 16-bit queries over 16-bit pages by mma.sync, decode rows and prefill chunks in one launch (sm_80, up).
//
//   out[row] = sum over keys of softmax(softcap(scale q . k) + slope (key - position) + bias[key - position]) v
//
// Mapping. Block = slot of the plan (plan.h): it walks pieces, a piece walks splits of 256 keys, a split walks chunks
// of
// 64. For a chunk the four warps share the *keys* for q k^T (16 keys each, all rows) and the *columns* of the head for
// p v (head_dim / 4 each, all rows and keys); between the two, row maxima and p (16-bit) go through shared memory. So
// each byte of K and V leaves shared memory once, and a row tile is 16 rows (decode, kRowTiles = 1) or 32 (prefill, 2;
// not for head_dim 256, where registers do not suffice) with the same code: the rows of a tile share every load of K
// and V.
//
// Exactness. For one row every sum runs in an order that its position alone decides: head_dim in steps of 16, keys in
// steps of 16 inside a chunk, chunks inside a split, splits from left to right (softmax_state.cuh); the sums of p in 16
// columns of a chunk (one a warp) and these in order. Neither the shape of the tile, nor who computes the split, nor
// keys that the row does not see (p = 0, factor 1) change a bit. Only values that are infinite or NaN at later
// positions of the same sequence would: 0 times them is NaN.
//
// Barriers of a chunk:
//   A  the chunk has landed for all; all are done with the chunk before, whose place is filled next, and with p
//   B  row maxima are written; all have read queries and positions
//   C  p is written; row maxima have been read
// and one at the end of a split for the sums of the warps. Queries and positions of the next piece are written after
// the last B, when nobody reads them any more, and are seen after the next A.
//
// Limits, H200, bf16, head_dim 128, 8 KV heads: a chunk moves 32 KB and computes 4 * rows * 64 * 128 flops. Decode: at
// 33 bytes a ns an SM a chunk has 1.0 us, 2.0 us with two blocks an SM; its instructions (a warp: 32 mma, 20 ldmatrix,
// 16 cp.async, three barriers) take less, and 2 * 64 KB are on their way. States of shared (tile, head) pairs add at
// most 2 * 4 * rows / (2 * 2 * 256) of the bytes: 3% for four rows, if all splits were shared. Prefill: 1.05 Mflop a
// chunk of 32 rows, 32 flops a byte from the second-level cache, which bounds it: Hopper has its own (prefill_sm90.h).
#pragma once

#include "cuda/attention/kv_stream.cuh"
#include "cuda/attention/softmax_state.cuh"

namespace quire::cuda {

// Chunks of the ring, row tiles of the larger shape, blocks an SM: what fits 227 KB (and 163 KB for at least one
// block).
template <int kHeadDim>
struct AttendShape {
  static constexpr int kRing = kHeadDim <= 80 ? 4 : kHeadDim <= 128 ? 3 : 2;
  static constexpr int kTall = tile_rows(kHeadDim) / 16;
  static constexpr int kBlocks = kHeadDim <= 128 ? 2 : 1;
};

template <int kHeadDim>
struct AttendShared {
  using Shape = AttendShape<kHeadDim>;
  static constexpr int kRows = Shape::kTall * 16;
  uint4 ring[Shape::kRing * 2 * kChunkKeys * SharedRows<kHeadDim>::kStride];
  uint4 queries[kRows * SharedRows<kHeadDim>::kStride];
  uint4 weights[kRows * SharedRows<kChunkKeys>::kStride];  // p
  float4 maxima[kRows];                                    // of the four warps
  float4 sums[kRows];
  int32_t position[kRows];
  float slope[kRows];
  int32_t bias[kRows];  // where the relative bias of distance 0 lies
  int32_t is_last;
};

// Row `i` of an accumulator of this lane: accumulators hold rows lane / 4 and that + 8 of each 16.
__device__ __forceinline__ int lane_row(int row_tile, int half) {
  return row_tile * 16 + half * 8 + static_cast<int>(threadIdx.x % 32 / 4);
}

template <typename T, int kHeadDim, int kRowTiles>
class PieceAttention {
 public:
  using Shared = AttendShared<kHeadDim>;
  using Stream = KvStream<T, kHeadDim, Shared::Shape::kRing>;
  using Rows = SharedRows<kHeadDim>;
  using WeightRows = SharedRows<kChunkKeys>;
  static constexpr int kTiles = kHeadDim / 8;         // columns of the head in eights
  static constexpr int kOwnTiles = (kTiles + 3) / 4;  // of one warp

  // The sums of a set of keys, in fragments.
  struct State {
    float out[kRowTiles][kOwnTiles][4];
    float max[kRowTiles][2];
    float sum[kRowTiles][2];  // inside a split: of this lane's columns

    __device__ __forceinline__ void clear() {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < kOwnTiles * 4; ++i) out[m][i / 4][i % 4] = 0.0f;
        max[m][0] = max[m][1] = -INFINITY;
        sum[m][0] = sum[m][1] = 0.0f;
      }
    }
  };

  __device__ __forceinline__ PieceAttention(const AttendArgs& p, Shared& s, Stream& stream, const Piece& piece)
      : p_(p), s_(s), stream_(stream), piece_(piece) {
    const int group = p.num_heads / p.num_kv_heads, last_row = piece.tile.row_begin + piece.tile.num_rows - 1;
    const int first = piece.tile.first_position + piece.tile.row_begin / group;
    const int last = piece.tile.first_position + last_row / group;
    all_see_from_ = p.window > 0 ? last - p.window + 1 : 0;
    all_see_to_ = end_of_keys(p.causal, p.window, first, piece.tile.kv_len);
  }

  // Queries as they are, rows without one as zeros; positions and slopes for masks and biases.
  __device__ void load_queries() {
    const int group = p_.num_heads / p_.num_kv_heads;
    for (int at = static_cast<int>(threadIdx.x); at < kRowTiles * 16 * Rows::kPieces; at += kAttendThreads) {
      const int row = at / Rows::kPieces, column = at % Rows::kPieces;
      uint2 half[2] = {};
      if (row < piece_.tile.num_rows) {
        const int index = piece_.tile.row_begin + row;
        const int64_t token = piece_.tile.first_token + index / group, head = piece_.head * group + index % group;
        const T* const from = static_cast<const T*>(p_.q) + token * p_.q_stride + head * kHeadDim + column * 8;
        half[0] = reinterpret_cast<const uint2*>(from)[0];
        half[1] = reinterpret_cast<const uint2*>(from)[1];
      }
      s_.queries[Rows::at(row, column)] = make_uint4(half[0].x, half[0].y, half[1].x, half[1].y);
    }
    if (threadIdx.x < kRowTiles * 16) {
      const int row = piece_.tile.row_begin + min(static_cast<int>(threadIdx.x), piece_.tile.num_rows - 1);
      s_.position[threadIdx.x] = piece_.tile.first_position + row / group;
      s_.slope[threadIdx.x] = p_.alibi_slopes != nullptr ? p_.alibi_slopes[piece_.head * group + row % group] : 0.0f;
      s_.bias[threadIdx.x] = (piece_.head * group + row % group) * (2 * p_.relative_reach + 1) + p_.relative_reach;
    }
  }

  // The state of one split; its sums are of all columns at the end.
  __device__ __forceinline__ void attend_split(int split, State& state) {
    state.clear();
    const int end = end_chunk(piece_, split + 1);
#pragma unroll 1
    for (int chunk = first_chunk(piece_, split); chunk < end; ++chunk) {
      attend_chunk(chunk, state);
    }
    add_up_sums(state);
  }

  __device__ __forceinline__ void merge_into(State& left, const State& right) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const MergeFactors factors =
            merge_factors(left.max[m][half], left.sum[m][half], right.max[m][half], right.sum[m][half]);
        left.max[m][half] = factors.max;
        left.sum[m][half] = merge(factors, left.sum[m][half], right.sum[m][half]);
#pragma unroll
        for (int i = 0; i < kOwnTiles * 2; ++i) {
          float& out = left.out[m][i / 2][half * 2 + i % 2];
          out = merge(factors, out, right.out[m][i / 2][half * 2 + i % 2]);
        }
      }
    }
  }

  // Rows of head_dim + 4 floats, from `first_row` of the states on.
  __device__ void store_state(const State& state, int64_t first_row) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = lane_row(m, half);
        if (row >= piece_.tile.num_rows) continue;
        float* const to = p_.states + (first_row + row) * (kHeadDim + 4);
#pragma unroll
        for (int n = 0; n < kOwnTiles; ++n) {
          if (own_tile(n) >= kTiles) continue;
          *reinterpret_cast<float2*>(to + own_tile(n) * 8 + lane_column()) =
              make_float2(state.out[m][n][half * 2], state.out[m][n][half * 2 + 1]);
        }
        if (threadIdx.x / 32 == 0 && lane_column() == 0) {
          *reinterpret_cast<float2*>(to + kHeadDim) = make_float2(state.max[m][half], state.sum[m][half]);
        }
      }
    }
  }

  __device__ void store_out(const State& state) {
    const int group = p_.num_heads / p_.num_kv_heads;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = lane_row(m, half), index = piece_.tile.row_begin + row;
        if (row >= piece_.tile.num_rows) continue;
        const int64_t token = piece_.tile.first_token + index / group, head = piece_.head * group + index % group;
        const float factor = final_factor(state.max[m][half], state.sum[m][half], p_.sinks != nullptr,
                                          p_.sinks != nullptr ? p_.sinks[head] : 0.0f);
        T* const to = static_cast<T*>(p_.out) + token * p_.out_stride + head * kHeadDim;
#pragma unroll
        for (int n = 0; n < kOwnTiles; ++n) {
          if (own_tile(n) >= kTiles) continue;
          *reinterpret_cast<uint32_t*>(to + own_tile(n) * 8 + lane_column()) =
              pack_out(state.out[m][n][half * 2], state.out[m][n][half * 2 + 1], factor);
        }
      }
    }
  }

  // + 0: a zero is written with one sign, whoever computed it.
  __device__ static __forceinline__ uint32_t pack_out(float x, float y, float factor) {
    return pack_pair(MmaTag<T>(), __fadd_rn(__fmul_rn(x, factor), 0.0f), __fadd_rn(__fmul_rn(y, factor), 0.0f));
  }

 private:
  using Scores = float[kRowTiles][2][4];

  __device__ static __forceinline__ int lane_column() { return static_cast<int>(threadIdx.x % 4 * 2); }
  __device__ static __forceinline__ int warp() { return static_cast<int>(threadIdx.x / 32); }
  __device__ static __forceinline__ int own_tile(int n) { return warp() * kOwnTiles + n; }

  __device__ __forceinline__ void attend_chunk(int chunk, State& state) {
    Scores scores;
    stream_.wait();
    __syncthreads();  // A
    stream_.issue();
    const uint4* const keys = stream_.take();
    multiply_keys(keys, scores);
    scale_scores(chunk * kChunkKeys + warp() * 16, scores);
    if (p_.relative_bias != nullptr) add_relative_bias(chunk * kChunkKeys + warp() * 16, scores);
    if (chunk * kChunkKeys < all_see_from_ || (chunk + 1) * kChunkKeys > all_see_to_) {
      mask_scores(chunk * kChunkKeys + warp() * 16, scores);
    }
    write_maxima(scores);
    __syncthreads();  // B
    weigh(scores, state);
    __syncthreads();  // C
    add_values(keys + Stream::kTilePieces, state);
  }

  __device__ __forceinline__ void multiply_keys(const uint4* keys, Scores& scores) {
#pragma unroll
    for (int i = 0; i < kRowTiles * 8; ++i) scores[i / 8][i / 4 % 2][i % 4] = 0.0f;
#pragma unroll 4  // more would hold too many registers
    for (int k = 0; k < kHeadDim / 16; ++k) {
      uint32_t b[4];
      Rows::load_keys(keys, warp() * 16, k, b);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        uint32_t a[4];
        Rows::load_left(s_.queries, m * 16, k, a);
        multiply_add<T, 0>(scores[m][0], a, b);
        multiply_add<T, 2>(scores[m][1], a, b);
      }
    }
  }

  // To exponents of two. `key`: of the warp's first column.
  __device__ __forceinline__ void scale_scores(int key, Scores& scores) {
    const bool is_plain = p_.softcap <= 0.0f && p_.alibi_slopes == nullptr;
    const float factor = __fmul_rn(p_.scale, kLog2e);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& x = scores[m][i / 4][i % 4];
        if (is_plain) {
          x = __fmul_rn(x, factor);
          continue;
        }
        const int row = lane_row(m, i % 4 / 2), column = key + i / 4 * 8 + lane_column() + i % 2;
        x = __fmul_rn(x, p_.scale);
        if (p_.softcap > 0.0f) x = soft_cap(x, p_.softcap);
        x = __fmul_rn(fmaf(s_.slope[row], static_cast<float>(column - s_.position[row]), x), kLog2e);
      }
    }
  }

  __device__ __forceinline__ void add_relative_bias(int key, Scores& scores) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = lane_row(m, half), position = s_.position[row];
        const float* const bias = p_.relative_bias + s_.bias[row];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int distance = key + i / 2 * 8 + lane_column() + i % 2 - position;
          float& x = scores[m][i / 2][half * 2 + i % 2];
          x = fmaf(bias[max(-p_.relative_reach, min(p_.relative_reach, distance))], kLog2e, x);
        }
      }
    }
  }

  __device__ __forceinline__ void mask_scores(int key, Scores& scores) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int position = s_.position[lane_row(m, half)];
        const int begin = p_.window > 0 ? position - p_.window + 1 : 0;
        const int end = end_of_keys(p_.causal, p_.window, position, piece_.tile.kv_len);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = key + i / 2 * 8 + lane_column() + i % 2;
          float& x = scores[m][i / 2][half * 2 + i % 2];
          x = column >= begin && column < end ? x : -INFINITY;
        }
      }
    }
  }

  __device__ __forceinline__ void write_maxima(const Scores& scores) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float max = fmaxf(fmaxf(scores[m][0][half * 2], scores[m][0][half * 2 + 1]),
                          fmaxf(scores[m][1][half * 2], scores[m][1][half * 2 + 1]));
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
        if (lane_column() == 0) reinterpret_cast<float*>(s_.maxima + lane_row(m, half))[warp()] = max;
      }
    }
  }

  // p = 2^(score - maximum so far), to shared memory; what was summed with another maximum follows.
  __device__ __forceinline__ void weigh(const Scores& scores, State& state) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = lane_row(m, half);
        const float4 maxima = s_.maxima[row];
        float& max = state.max[m][half];
        const float new_max = fmaxf(max, fmaxf(fmaxf(maxima.x, maxima.y), fmaxf(maxima.z, maxima.w)));
        const float base = new_max == -INFINITY ? 0.0f : new_max;  // a row that has seen nothing yet
        const float factor = simt::exp2_approx(max - base);
        max = new_max;
        float p[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) p[i] = simt::exp2_approx(scores[m][i / 2][half * 2 + i % 2] - base);
        state.sum[m][half] = fmaf(state.sum[m][half], factor, (p[0] + p[1]) + (p[2] + p[3]));
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          uint4* const piece = s_.weights + WeightRows::at(row, warp() * 2 + n);
          reinterpret_cast<uint32_t*>(piece)[threadIdx.x % 4] = pack_pair(MmaTag<T>(), p[n * 2], p[n * 2 + 1]);
        }
#pragma unroll
        for (int i = 0; i < kOwnTiles * 2; ++i) state.out[m][i / 2][half * 2 + i % 2] *= factor;
      }
    }
  }

  __device__ __forceinline__ void add_values(const uint4* values, State& state) {
#pragma unroll 1
    for (int k = 0; k < kChunkKeys / 32; ++k) {
      uint32_t a[kRowTiles][2][4];
#pragma unroll
      for (int i = 0; i < kRowTiles * 2; ++i) {
        WeightRows::load_left(s_.weights, i / 2 * 16, k * 2 + i % 2, a[i / 2][i % 2]);
      }
#pragma unroll
      for (int n = 0; n < kOwnTiles; ++n) {
        if (kTiles % 4 != 0 && own_tile(n) >= kTiles) continue;
        uint32_t b[4];
        Rows::load_values(values, k * 32, own_tile(n), b);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          multiply_add<T, 0>(state.out[m][n], a[m][0], b);
          multiply_add<T, 2>(state.out[m][n], a[m][1], b);
        }
      }
    }
  }

  __device__ __forceinline__ void add_up_sums(State& state) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = state.sum[m][half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (lane_column() == 0) reinterpret_cast<float*>(s_.sums + lane_row(m, half))[warp()] = sum;
      }
    }
    __syncthreads();  // sums of all warps; they are written again after the barriers of another chunk
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float4 sums = s_.sums[lane_row(m, half)];
        state.sum[m][half] = ((sums.x + sums.y) + sums.z) + sums.w;
      }
    }
  }

  const AttendArgs& p_;
  Shared& s_;
  Stream& stream_;
  const Piece& piece_;
  int all_see_from_, all_see_to_;  // keys that every row sees
};

}  // namespace quire::cuda
