// The first pass over the logits: what each slice tells of its row. Grid (slices, rows).
//
// Reads each logit once. A greedy row is finished by it but for the comparison of its slices (plan.cuh), so is a row
// that is drawn without filters. A row whose edits may be seen is written back edited.
#pragma once

#include "cuda/sampling/tile.cuh"

namespace quire::cuda {

struct ScanShared {
  BlockScratch scratch;
  EditShared edit;
};

__device__ inline float sum_exp_of_tile(const Tile& tile, float max, BlockScratch& scratch) {
  float sum = 0.0f;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += expf(tile.x[group][i] - max);
  }
  return block_sum(max == kLowest ? 0.0f : sum, scratch);
}

__device__ inline float max_of_thread(const Tile& tile) {
  float max = kLowest;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) max = fmaxf(max, tile.x[group][i]);
  }
  return max;
}

__device__ inline void scan_raw(const SamplingArgs& args, const SamplingRow& row, const Tile& tile, int64_t at,
                                SliceStats& stats, BlockScratch& scratch) {
  const float warp_best = warp_max(max_of_thread(tile));
  if (row.num_logprobs > 0 && threadIdx.x % 32 == 0) {
    args.raw_run_max[at * kSamplingWarps + threadIdx.x / 32] = warp_best;
  }
  stats.raw_max = value_of(block_max(make_key(warp_best, 0), scratch));
  stats.raw_sum_exp = sum_exp_of_tile(tile, stats.raw_max, scratch);
}

__global__ void __launch_bounds__(kSamplingThreads) sampling_scan_kernel(const __grid_constant__ SamplingArgs args) {
  ScanShared& shared = simt::block_shared<ScanShared>();
  const auto row_index = static_cast<int32_t>(blockIdx.y), slice = static_cast<int32_t>(blockIdx.x);
  const int32_t n = args.block.vocab_size;
  const int64_t at = int64_t{row_index} * args.num_slices + slice;
  simt::grid_dependency_wait();
  const SamplingRow row = row_of(args, row_index);
  Tile tile;
  load_tile(args, row_index, slice, tile);
  simt::grid_dependency_launch();
  SliceStats stats = {};
  if (keeps_raw(row)) scan_raw(args, row, tile, at, stats, shared.scratch);
  if (has_edits(row)) {
    edit_tile(row, slice, n, shared.edit, tile);
    if (!keeps_raw(row)) store_tile(args, row_index, slice, tile);
  }
  divide_tile(row, tile);
  stats.best = block_max(best_of_tile(tile, slice, n), shared.scratch);
  if (is_sampled(row) && !is_filtered(row, n)) {
    const auto all = [](float, int32_t) { return true; };
    stats.drawn = block_max(draw_from_tile(row, tile, slice, all, shared.scratch), shared.scratch);
  }
  if (is_sampled(row) && has_top_k(row, n)) {
    const float warp_best = warp_max(max_of_thread(tile));
    if (threadIdx.x % 32 == 0) args.run_max[at * kSamplingWarps + threadIdx.x / 32] = warp_best;
  }
  if (is_sampled(row) && needs_row_mass(row, n)) {
    stats.sum_exp = sum_exp_of_tile(tile, value_of(stats.best), shared.scratch);
  }
  if (threadIdx.x == 0) args.stats[at] = stats;
}

}  // namespace quire::cuda
