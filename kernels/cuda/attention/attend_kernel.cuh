// The kernel around PieceAttention: a slot's pieces, the states it leaves, and the merge by the last of those that
// share a (tile, head). See attend.cuh for the mathematics and plan.h for who does what.
#pragma once

#include "cuda/attention/attend.cuh"

namespace quire::cuda {

// Merges the states of a shared (tile, head), in order, and writes its rows of the output. A thread takes four columns
// of a row; the states of kAhead splits are on their way at a time. Reads go around the first-level cache, which may
// hold old neighbours of what other blocks have written.
template <typename T, int kHeadDim>
__device__ void merge_states(const AttendArgs& p, const Piece& piece, int64_t first_row, int num_states) {
  constexpr int kQuads = kHeadDim / 4, kStride = kHeadDim + 4, kAhead = 8;
  const int group = p.num_heads / p.num_kv_heads, num_rows = piece.tile.num_rows;
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at < num_rows * kQuads; at += kAttendThreads) {
    const int row = at / kQuads, column = at % kQuads * 4;
    const float* const states = p.states + (first_row + row) * kStride;
    float max = -INFINITY, sum = 0.0f, out[4] = {};
#pragma unroll 1
    for (int begin = 0; begin < num_states; begin += kAhead) {
      float4 part[kAhead];
      float2 part_sum[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (begin + i >= num_states) continue;
        const float* const state = states + int64_t{begin + i} * num_rows * kStride;
        part[i] = __ldcg(reinterpret_cast<const float4*>(state + column));
        part_sum[i] = __ldcg(reinterpret_cast<const float2*>(state + kHeadDim));
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (begin + i >= num_states) continue;
        const MergeFactors factors = merge_factors(max, sum, part_sum[i].x, part_sum[i].y);
        max = factors.max;
        sum = merge(factors, sum, part_sum[i].y);
        out[0] = merge(factors, out[0], part[i].x);
        out[1] = merge(factors, out[1], part[i].y);
        out[2] = merge(factors, out[2], part[i].z);
        out[3] = merge(factors, out[3], part[i].w);
      }
    }
    const int index = piece.tile.row_begin + row;
    const int64_t token = piece.tile.first_token + index / group, head = piece.head * group + index % group;
    const bool has_sink = p.sinks != nullptr;
    const float factor = final_factor(max, sum, has_sink, has_sink ? p.sinks[head] : 0.0f);
    using Pack = PieceAttention<T, kHeadDim, 1>;
    T* const to = static_cast<T*>(p.out) + token * p.out_stride + head * kHeadDim + column;
    *reinterpret_cast<uint2*>(to) =
        make_uint2(Pack::pack_out(out[0], out[1], factor), Pack::pack_out(out[2], out[3], factor));
  }
}

// After the states of this block are written: counts it in, and merges if it is the last.
template <typename T, int kHeadDim>
__device__ void finish_shared(const AttendArgs& p, AttendShared<kHeadDim>& s, const Piece& piece) {
  const PlanHeader header = *p.plan.header;
  const int splits = piece.tile.split_end - piece.tile.split_begin;
  const int first_unit = p.plan.first_unit[piece.tile_index] + piece.head * splits;
  const int owner = slot_of_unit(header, first_unit), last = slot_of_unit(header, first_unit + splits - 1);
  __threadfence();
  __syncthreads();  // the states of all threads are written; is_last of an earlier call has been read
  if (threadIdx.x == 0) {
    s.is_last = atomicAdd(p.plan.arrivals + owner, 1) == last - owner ? 1 : 0;
    if (s.is_last != 0) p.plan.arrivals[owner] = 0;  // for the next launch
  }
  __syncthreads();
  if (s.is_last == 0) return;
  __threadfence();
  const Slot second = p.plan.slots[owner + 1];
  merge_states<T, kHeadDim>(p, piece, second.state_row - piece.tile.num_rows, 1 + piece.tile.split_end - second.split);
}

template <typename T, int kHeadDim, int kRowTiles>
__device__ void attend_piece(const AttendArgs& p, AttendShared<kHeadDim>& s,
                             typename PieceAttention<T, kHeadDim, kRowTiles>::Stream& stream, const Piece& piece,
                             int slot) {
  PieceAttention<T, kHeadDim, kRowTiles> attention(p, s, stream, piece);
  using State = typename PieceAttention<T, kHeadDim, kRowTiles>::State;
  attention.load_queries();
  // Begun by another slot: single splits are left to the one that merges. Else they fold here.
  const bool is_begun = piece.split_begin > piece.tile.split_begin;
  int64_t row = p.plan.slots[slot].state_row;
  State folded;
  folded.clear();
#pragma unroll 1
  for (int split = piece.split_begin; split < piece.split_end; ++split) {
    State state;
    attention.attend_split(split, state);
    if (is_begun) {
      attention.store_state(state, row);
      row += piece.tile.num_rows;
    } else {
      attention.merge_into(folded, state);
    }
  }
  if (!is_begun && piece.split_end == piece.tile.split_end) {
    attention.store_out(folded);
    return;
  }
  if (!is_begun) attention.store_state(folded, p.plan.slots[slot + 1].state_row - piece.tile.num_rows);
  finish_shared<T, kHeadDim>(p, s, piece);
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kAttendThreads, AttendShape<kHeadDim>::kBlocks)
    attend_kernel(const __grid_constant__ AttendArgs p) {
  using Shape = AttendShape<kHeadDim>;
  auto& s = simt::block_shared<AttendShared<kHeadDim>>();
  simt::grid_dependency_wait();
  simt::grid_dependency_launch();
#pragma unroll 1
  for (int slot = static_cast<int>(blockIdx.x); slot < p.plan.header->num_slots; slot += static_cast<int>(gridDim.x)) {
    PieceWalker walker(p.plan.slots[slot], p.plan.slots[slot + 1]);
    KvStream<T, kHeadDim, Shape::kRing> stream(p, walker, s.ring);
    Piece piece;
    while (walker.next(p, piece)) {
      if (Shape::kTall == 1 || piece.tile.num_rows <= kShortRows) {
        attend_piece<T, kHeadDim, 1>(p, s, stream, piece, slot);
      } else {
        attend_piece<T, kHeadDim, Shape::kTall>(p, s, stream, piece, slot);
      }
    }
    simt::cp_async_wait<0>();
    __syncthreads();  // the ring and all else is free for the next slot
  }
}

}  // namespace quire::cuda
