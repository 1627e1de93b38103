// The third pass, for rows that had too many candidates to list: flat distributions. Grid (slices, rows).
//
// What lies in the bins before the cut is drawn from where it is; what lies in the cut bins is listed, and the last
// block of a row sorts it, cuts, and draws. When the cut bins hold too much as well (thousands of equal logits), one
// block searches the whole row for the cut, a digit of the key a pass (exact.cuh).
#pragma once

#include "cuda/sampling/candidates.cuh"
#include "cuda/sampling/exact.cuh"

namespace quire::cuda {

__device__ inline void finish_row(const SamplingArgs& args, int32_t row_index, RowState& state, const Drawn& drawn) {
  if (threadIdx.x != 0) return;
  args.block.token_ids[row_index] = drawn.token;
  state.cut = drawn.cut;
}

__global__ void __launch_bounds__(kSamplingThreads, 3) sampling_draw_kernel(const __grid_constant__ SamplingArgs args) {
  SelectShared& shared = simt::block_shared<SelectShared>();
  const auto row_index = static_cast<int32_t>(blockIdx.y), slice = static_cast<int32_t>(blockIdx.x);
  simt::grid_dependency_wait();
  simt::grid_dependency_launch();
  RowState& state = args.states[row_index];
  const RowPhase phase = state.phase;
  if (phase != RowPhase::draw && !(phase == RowPhase::exact && slice == 0)) return;
  const SamplingRow row = row_of(args, row_index);
  if (phase == RowPhase::exact) {
    return finish_row(args, row_index, state, draw_exactly(args, row, row_index, state, shared));
  }
  const float bound = state.bound, max = state.max;
  const int first_bin = state.first_bin, end_bin = state.end_bin;
  Tile tile;
  load_final_tile(args, row, row_index, slice, shared.edit, tile);
  const auto stays = [=](float x, int32_t) { return x >= bound && bin_of(x, max) < first_bin; };
  const uint64_t drawn = block_max(draw_from_tile(row, tile, slice, stays, shared.scratch), shared.scratch);
  if (threadIdx.x == 0 && drawn != 0) {
    atomicMax(reinterpret_cast<unsigned long long*>(&state.drawn), static_cast<unsigned long long>(drawn));
  }
  const auto is_cut = [=](float x, int32_t) {
    return x >= bound && x > kLowest && bin_of(x, max) >= first_bin && bin_of(x, max) < end_bin;
  };
  uint64_t* listed = args.listed + int64_t{row_index} * kMaxListed;
  list_tokens(tile, slice, is_cut, listed, kMaxListed, &state.num_listed, shared);
  if (!is_last_block(state, gridDim.x, shared)) return;
  const bool has_k = has_top_k(row, args.block.vocab_size);
  const Before before = {state.count_before, state.mass_before, state.total_mass, __ldcg(&state.drawn)};
  finish_row(args, row_index, state,
             draw_from_list(row, has_k, listed, __ldcg(&state.num_listed), max, bound, before, shared));
}

}  // namespace quire::cuda
