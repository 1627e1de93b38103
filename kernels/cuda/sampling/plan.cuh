// Between the passes: joins what the slices told, ends the rows that are decided, and gives the others a bound that
// needs no further look at them. Grid (rows).
//
//   top_k   the k-th largest of the largest logits of runs of 512 tokens is not above the k-th largest logit
//   top_p   all tokens below max + log((1 - top_p) * total / vocab_size) have less than the mass that is dropped
//   min_p   max + log(min_p), exactly
// The first is found to 16 leading bits by bisection; fewer bits only let more candidates through.
#pragma once

#include "cuda/sampling/tile.cuh"

namespace quire::cuda {

constexpr int kRunsAThread = 8;  // bisection keeps them in registers: vocabularies up to 2^20 tokens

struct PlanShared {
  BlockScratch scratch;
  EditShared edit;
};

// A bound that at least k of the `count` run maxima reach; -infinity when there are fewer, or too many to look at.
__device__ inline float run_max_bound(const float* run_max, int32_t count, int32_t k, BlockScratch& scratch) {
  if (k > count || count > kRunsAThread * kSamplingThreads) return kLowest;
  uint32_t ordered[kRunsAThread];
#pragma unroll
  for (int i = 0; i < kRunsAThread; ++i) {
    const int32_t at = i * kSamplingThreads + static_cast<int32_t>(threadIdx.x);
    ordered[i] = at < count ? static_cast<uint32_t>(make_key(run_max[at], 0) >> 32) : 0u;
  }
  uint32_t bound = 0;
  for (uint32_t bit = 1u << 31; bit >= 1u << 16; bit /= 2) {
    uint64_t reached = 0;
#pragma unroll
    for (int i = 0; i < kRunsAThread; ++i) reached += ordered[i] >= (bound | bit) ? 1 : 0;
    if (block_scan(reached, scratch).total >= static_cast<uint64_t>(k)) bound |= bit;
  }
  const float value = value_of(uint64_t{bound} << 32);
  return value == value ? value : kLowest;  // below -infinity there is only NaN
}

// When no logit is above -infinity: the lowest unmasked id that is allowed and not banned, else the lowest that is
// allowed, else the lowest of all.
__device__ inline int32_t lowest_permitted(const SamplingArgs& args, const SamplingRow& row, PlanShared& shared) {
  uint64_t allowed = 0;
  for (int32_t slice = 0; slice < args.num_slices; ++slice) {
    mark_slice(row, slice, args.block.vocab_size, shared.edit);
    uint64_t permitted = 0;
    for (int at = static_cast<int>(threadIdx.x); at < kSliceTokens; at += kSamplingThreads) {
      const int32_t id = slice * kSliceTokens + at;
      if (id >= args.block.vocab_size || !(shared.edit.allowed[at / 32] >> at % 32 & 1)) continue;
      allowed = larger(allowed, make_key(0.0f, id));
      if (!(shared.edit.banned[at / 32] >> at % 32 & 1)) permitted = larger(permitted, make_key(0.0f, id));
    }
    permitted = block_max(permitted, shared.scratch);  // its barriers let the marks be cleared
    if (permitted != 0) return id_of(permitted);
  }
  allowed = block_max(allowed, shared.scratch);
  for (int32_t id = static_cast<int32_t>(threadIdx.x); allowed == 0 && id < args.block.vocab_size;
       id += kSamplingThreads) {
    if (!is_masked(row.allowed_mask, id)) allowed = make_key(0.0f, id);
  }
  allowed = block_max(allowed, shared.scratch);
  return allowed != 0 ? id_of(allowed) : 0;
}

__device__ inline void plan_logprobs(const SamplingArgs& args, const SamplingRow& row, int32_t row_index,
                                     RowState& state, BlockScratch& scratch) {
  const SliceStats* stats = args.stats + int64_t{row_index} * args.num_slices;
  uint64_t best = 0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < args.num_slices; i += kSamplingThreads) {
    best = larger(best, make_key(stats[i].raw_max, 0));
  }
  const float max = value_of(block_max(best, scratch));
  float sum = 0.0f;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < args.num_slices; i += kSamplingThreads) {
    sum += stats[i].raw_sum_exp * expf(stats[i].raw_max - max);
  }
  state.raw_normaliser = max + logf(block_sum(sum, scratch));
  const int32_t runs = args.num_slices * kSamplingWarps, k = min(row.num_logprobs, args.block.vocab_size);
  state.raw_bound = k > 0 ? run_max_bound(args.raw_run_max + int64_t{row_index} * runs, runs, k, scratch) : -kLowest;
}

__device__ inline void plan_filters(const SamplingArgs& args, const SamplingRow& row, int32_t row_index,
                                    RowState& state, BlockScratch& scratch) {
  const int32_t n = args.block.vocab_size, runs = args.num_slices * kSamplingWarps;
  state.phase = RowPhase::select;
  state.bound = kLowest;
  if (row.min_p > 0.0f) {
    state.bound = __fadd_rn(state.max, static_cast<float>(log(static_cast<double>(row.min_p))));
  }
  if (has_top_k(row, n)) {
    state.bound = fmaxf(state.bound, run_max_bound(args.run_max + int64_t{row_index} * runs, runs, row.top_k, scratch));
  }
  if (needs_row_mass(row, n)) {
    const SliceStats* stats = args.stats + int64_t{row_index} * args.num_slices;
    float sum = 0.0f;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < args.num_slices; i += kSamplingThreads) {
      sum += stats[i].sum_exp * expf(value_of(stats[i].best) - state.max);
    }
    const double total = static_cast<double>(block_sum(sum, scratch));
    state.total_mass = static_cast<uint64_t>(total * 0x1p40);
    state.bound = state.max + static_cast<float>(log((1.0 - static_cast<double>(row.top_p)) * total / n)) - 1e-3f;
  }
  for (int i = static_cast<int>(threadIdx.x); i < kNumBins; i += kSamplingThreads) {
    args.bin_counts[int64_t{row_index} * kNumBins + i] = 0;
    args.bin_masses[int64_t{row_index} * kNumBins + i] = 0;
  }
}

__global__ void __launch_bounds__(kSamplingThreads, 3) sampling_plan_kernel(const __grid_constant__ SamplingArgs args) {
  PlanShared& shared = simt::block_shared<PlanShared>();
  const auto row_index = static_cast<int32_t>(blockIdx.x);
  simt::grid_dependency_wait();
  simt::grid_dependency_launch();
  const SamplingRow row = row_of(args, row_index);
  const SliceStats* stats = args.stats + int64_t{row_index} * args.num_slices;
  uint64_t best = 0, drawn = 0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < args.num_slices; i += kSamplingThreads) {
    best = larger(best, stats[i].best);
    drawn = larger(drawn, stats[i].drawn);
  }
  best = block_max(best, shared.scratch);
  drawn = block_max(drawn, shared.scratch);
  RowState state = {};
  state.max = value_of(best);
  if (keeps_raw(row)) plan_logprobs(args, row, row_index, state, shared.scratch);
  int32_t token = -1;
  if (row.forced_token >= 0 && args.reports) {
    token = row.forced_token;
  } else if (state.max == kLowest) {
    token = lowest_permitted(args, row, shared);
  } else if (!is_sampled(row) || state.max == -kLowest) {
    token = id_of(best);
  } else if (!is_filtered(row, args.block.vocab_size)) {
    token = id_of(drawn);
  } else {
    plan_filters(args, row, row_index, state, shared.scratch);
  }
  if (threadIdx.x != 0) return;
  if (token >= 0) args.block.token_ids[row_index] = token;
  if (keeps_raw(row)) args.block.sampled_rank[row_index] = 0;
  args.states[row_index] = state;
}

}  // namespace quire::cuda
