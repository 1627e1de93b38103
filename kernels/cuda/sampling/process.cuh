// Between the two passes of processed logprobs: the logits become what the first pass drew from, and the second pass is
// asked for the logprobs of the token that was drawn. Grid (slices, rows).
#pragma once

#include "cuda/sampling/tile.cuh"

namespace quire::cuda {

__global__ void __launch_bounds__(kSamplingThreads) sampling_process_kernel(const __grid_constant__ SamplingArgs args) {
  const auto row_index = static_cast<int32_t>(blockIdx.y), slice = static_cast<int32_t>(blockIdx.x);
  simt::grid_dependency_wait();
  simt::grid_dependency_launch();
  const SamplingRow row = args.block.rows[row_index];
  if (slice == 0 && threadIdx.x == 0) {
    SamplingRow report;
    report.temperature = 0.0f;
    report.num_logprobs = row.num_logprobs;
    report.forced_token = row.forced_token >= 0 ? row.forced_token : args.block.token_ids[row_index];
    args.reports_of[row_index] = report;
  }
  if (row.num_logprobs < 0) return;
  const uint64_t cut = args.states[row_index].cut;
  Tile tile;
  load_tile(args, row_index, slice, tile);  // edited by the first pass
  divide_tile(row, tile);
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (make_key(tile.x[group][i], group_begin(slice, group) + i) < cut) tile.x[group][i] = kLowest;
    }
  }
  store_tile(args, row_index, slice, tile);
}

}  // namespace quire::cuda
