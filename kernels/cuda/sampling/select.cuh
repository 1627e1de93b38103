// The second pass, for rows with filters or with a wish for the most likely tokens. Grid (slices, rows).
//
// Each block lists the tokens that reach the row's bound and counts them in bins. The last block of a row draws from
// the list if all are in it: after a bound of plan.cuh a language model's logits leave tens to hundreds. Else it finds,
// from the bins alone, which bin the filters cut (draw.cuh finishes).
#pragma once

#include "cuda/sampling/candidates.cuh"

namespace quire::cuda {

__device__ inline void count_in_bins(const SamplingArgs& args, int32_t row_index, const Tile& tile, float bound,
                                     float max, BinShared& bins) {
  for (int i = static_cast<int>(threadIdx.x); i < kNumBins; i += kSamplingThreads) {
    bins.counts[i] = 0;
    bins.masses_low[i] = 0;
    bins.masses_high[i] = 0;
  }
  __syncthreads();  // the bins are empty
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float x = tile.x[group][i];
      if (!(x >= bound) || x == kLowest) continue;
      const int bin = bin_of(x, max);
      atomicAdd(&bins.counts[bin], 1u);
      add_mass(&bins.masses_low[bin], &bins.masses_high[bin], fixed_mass(x, max));
    }
  }
  __syncthreads();  // the bins are full
  for (int i = static_cast<int>(threadIdx.x); i < kNumBins; i += kSamplingThreads) {
    if (bins.counts[i] == 0) continue;
    atomicAdd(&args.bin_counts[int64_t{row_index} * kNumBins + i], bins.counts[i]);
    atomicAdd(reinterpret_cast<unsigned long long*>(args.bin_masses + int64_t{row_index} * kNumBins + i),
              static_cast<unsigned long long>(uint64_t{bins.masses_high[i]} << 32 | bins.masses_low[i]));
  }
}

// Which bins the filters cut: [first_bin, end_bin) must be sorted, what is before stays, what is after goes.
__device__ inline void find_cut(const SamplingArgs& args, const SamplingRow& row, int32_t row_index, RowState& state,
                                BlockScratch& scratch) {
  const uint32_t* counts = args.bin_counts + int64_t{row_index} * kNumBins;
  const uint64_t* masses = args.bin_masses + int64_t{row_index} * kNumBins;
  const auto count_at = [counts](int i) { return uint64_t{__ldcg(counts + i)}; };
  const auto mass_at = [masses](int i) { return uint64_t{__ldcg(masses + i)}; };
  int first = kNumBins, end = kNumBins;
  bool is_cut_by_k = false;
  uint64_t lowest_total = state.total_mass;
  if (has_top_k(row, args.block.vocab_size)) {
    first = find_crossing(kNumBins, static_cast<uint64_t>(row.top_k), count_at, scratch).index;
    is_cut_by_k = first < kNumBins;
    end = min(first + 1, kNumBins);
  }
  if (row.top_p < 1.0f) {
    if (lowest_total == 0) {
      lowest_total =
          find_crossing(kNumBins, ~uint64_t{0}, [&](int i) { return i < first ? mass_at(i) : 0; }, scratch).before;
      if (!is_cut_by_k) state.total_mass = lowest_total;
    }
    const int cut = find_crossing(kNumBins, nucleus_mass(row.top_p, lowest_total), mass_at, scratch).index;
    if (!is_cut_by_k) end = min(cut + 1, kNumBins);
    first = min(first, cut);
  }
  const uint64_t all = ~uint64_t{0};
  state.count_before = static_cast<uint32_t>(
      find_crossing(kNumBins, all, [&](int i) { return i < first ? count_at(i) : 0; }, scratch).before);
  state.mass_before = find_crossing(kNumBins, all, [&](int i) { return i < first ? mass_at(i) : 0; }, scratch).before;
  const uint64_t num_cut =
      find_crossing(kNumBins, all, [&](int i) { return i >= first && i < end ? count_at(i) : 0; }, scratch).before;
  state.first_bin = first;
  state.end_bin = end;
  state.num_listed = 0;
  state.blocks_done = 0;
  state.phase = num_cut <= kMaxListed ? RowPhase::draw : RowPhase::exact;
}

__global__ void __launch_bounds__(kSamplingThreads, 3)
    sampling_select_kernel(const __grid_constant__ SamplingArgs args) {
  SelectShared& shared = simt::block_shared<SelectShared>();
  // Backwards: the end of what the first pass read is still in L2.
  const auto row_index = static_cast<int32_t>(gridDim.y - 1 - blockIdx.y);
  const auto slice = static_cast<int32_t>(gridDim.x - 1 - blockIdx.x);
  const int32_t n = args.block.vocab_size;
  simt::grid_dependency_wait();
  simt::grid_dependency_launch();
  RowState& state = args.states[row_index];
  const bool is_filtered_row = state.phase == RowPhase::select;
  const SamplingRow row = row_of(args, row_index);
  if (!is_filtered_row && row.num_logprobs <= 0) return;
  const float bound = state.bound, raw_bound = state.raw_bound, max = state.max;
  Tile tile;
  load_tile(args, row_index, slice, tile);
  if (row.num_logprobs > 0) {
    const auto is_likely = [=](float x, int32_t id) { return x >= raw_bound && id < n; };
    list_tokens(tile, slice, is_likely, args.raw_listed + int64_t{row_index} * kMaxRawListed, kMaxRawListed,
                &state.num_raw_listed, shared);
  }
  if (!is_filtered_row) return;
  if (keeps_raw(row) && has_edits(row)) edit_tile(row, slice, args.block.vocab_size, shared.edit, tile);
  divide_tile(row, tile);
  uint64_t* listed = args.listed + int64_t{row_index} * kMaxListed;
  const auto is_candidate = [=](float x, int32_t) { return x >= bound && x > kLowest; };
  if (list_tokens(tile, slice, is_candidate, listed, kMaxListed, &state.num_listed, shared) > 0) {
    count_in_bins(args, row_index, tile, bound, max, shared.bins);
  }
  if (!is_last_block(state, gridDim.x, shared)) return;
  const uint32_t count = __ldcg(&state.num_listed);
  RowState next = state;
  if (count <= kMaxListed) {
    const Before before = {0, 0, state.total_mass, 0};
    const Drawn drawn = draw_from_list(row, has_top_k(row, n), listed, count, max, bound, before, shared);
    if (threadIdx.x == 0) args.block.token_ids[row_index] = drawn.token;
    next.cut = drawn.cut;
  }
  next.phase = RowPhase::done;
  if (count > kMaxListed) find_cut(args, row, row_index, next, shared.scratch);
  __syncthreads();  // everybody has read the state
  if (threadIdx.x == 0) {
    next.num_raw_listed = __ldcg(&state.num_raw_listed);
    state = next;
  }
}

}  // namespace quire::cuda
