// The pass after the draw, for rows that want logprobs: the rank of the token and the most likely ones, all of the raw
// logits. Grid (slices, rows). Each block counts in its slice; the first of a row writes the entries.
#pragma once

#include "cuda/sampling/exact.cuh"

namespace quire::cuda {

struct LogprobWriter {
  const SamplingArgs& args;
  int32_t row_index;
  float normaliser;

  __device__ void write(int32_t entry, int32_t id, float raw) const {
    const int64_t at = int64_t{row_index} * args.block.logprobs_stride + entry;
    args.block.logprob_ids[at] = id;
    args.block.logprobs[at] = raw == kLowest ? kLowest : raw - normaliser;
  }
};

// Entries [1, 1 + k) when the list has not room for them or has lost some: searched a thousand at a time.
__device__ inline void write_searched(const LogprobWriter& writer, const SamplingRow& row, int32_t k,
                                      SelectShared& shared) {
  RowSearch search = {writer.args, row, writer.row_index, true, 0.0f, 0, ~uint64_t{0}};
  for (int32_t written = 0; written < k;) {
    const int32_t count = min(k - written, kMaxRawListed);
    search.begin_key = 0;
    search.begin_key = key_at<false>(search, static_cast<uint64_t>(count), shared);
    if (threadIdx.x == 0) shared.first_listed = 0;
    __syncthreads();  // the list in shared memory is empty
    for_each_key(search, shared, [&](uint64_t key) { shared.keys[atomicAdd(&shared.first_listed, 1u)] = key; });
    sort_falling(shared.keys, count);
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kSamplingThreads) {
      writer.write(1 + written + i, id_of(shared.keys[i]), value_of(shared.keys[i]));
    }
    search.end_key = search.begin_key;
    written += count;  // the keys are read until the next search's first barrier
  }
}

__device__ inline void write_most_likely(const LogprobWriter& writer, const SamplingRow& row, uint32_t num_listed,
                                         SelectShared& shared) {
  const int32_t wanted = min(row.num_logprobs, writer.args.block.logprobs_stride - 1);
  const int32_t k = min(wanted, writer.args.block.vocab_size);
  if (k > 0 && num_listed > kMaxRawListed) {
    write_searched(writer, row, k, shared);
  } else if (k > 0) {
    const uint64_t* listed = writer.args.raw_listed + int64_t{writer.row_index} * kMaxRawListed;
    const auto count = static_cast<int>(num_listed);
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kSamplingThreads) shared.keys[i] = listed[i];
    sort_falling(shared.keys, count);
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < k; i += kSamplingThreads) {
      writer.write(1 + i, id_of(shared.keys[i]), value_of(shared.keys[i]));
    }
  }
  for (int32_t i = k + static_cast<int32_t>(threadIdx.x); i < wanted; i += kSamplingThreads) {
    writer.write(1 + i, -1, kLowest);  // more asked for than the vocabulary has
  }
}

__global__ void __launch_bounds__(kSamplingThreads)
    sampling_logprobs_kernel(const __grid_constant__ SamplingArgs args) {
  SelectShared& shared = simt::block_shared<SelectShared>();
  const auto row_index = static_cast<int32_t>(blockIdx.y), slice = static_cast<int32_t>(blockIdx.x);
  simt::grid_dependency_wait();
  simt::grid_dependency_launch();
  const SamplingRow row = row_of(args, row_index);
  if (!keeps_raw(row)) return;
  const int32_t token = args.block.token_ids[row_index], n = args.block.vocab_size;
  float sampled = args.block.logits[row_index * args.block.logits_stride + token];
  sampled = sampled == sampled ? sampled : kLowest;
  Tile tile;
  load_tile(args, row_index, slice, tile);
  uint64_t reached = 0;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      reached += tile.x[group][i] >= sampled && group_begin(slice, group) + i < n ? 1 : 0;
    }
  }
  reached = block_scan(reached, shared.scratch).total;
  if (threadIdx.x == 0) atomicAdd(&args.block.sampled_rank[row_index], static_cast<int32_t>(reached));
  if (slice != 0) return;
  const RowState& state = args.states[row_index];
  const LogprobWriter writer = {args, row_index, is_logits(args.block.logprobs_mode) ? 0.0f : state.raw_normaliser};
  if (threadIdx.x == 0) writer.write(0, token, sampled);
  write_most_likely(writer, row, state.num_raw_listed, shared);
}

}  // namespace quire::cuda
