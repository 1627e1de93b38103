// One block searches a whole row: the slow way, for what no list can hold.
//
// The key at which a weight (a count, or the mass) first reaches a target, in falling order of keys: eight passes of
// eight bits, each a histogram of the keys that begin as the ones found so far. Keys are distinct, so ties need no
// care of their own.
#pragma once

#include "cuda/sampling/candidates.cuh"

namespace quire::cuda {

struct RowSearch {
  const SamplingArgs& args;
  const SamplingRow& row;
  int32_t row_index;
  bool is_raw;  // the logits as they came, -infinity included; else the final ones above it
  float max;
  uint64_t begin_key, end_key;  // only keys in [begin_key, end_key)
};

// Calls use(key) for every key of the search, in the thread that holds it.
template <typename Use>
__device__ inline void for_each_key(const RowSearch& search, SelectShared& shared, const Use& use) {
  for (int32_t slice = 0; slice < search.args.num_slices; ++slice) {
    Tile tile;
    if (search.is_raw) {
      load_tile(search.args, search.row_index, slice, tile);
    } else {
      load_final_tile(search.args, search.row, search.row_index, slice, shared.edit, tile);
    }
#pragma unroll 1
    for (int group = 0; group < kGroups; ++group) {
      for (int i = 0; i < 4; ++i) {
        const int32_t id = group_begin(slice, group) + i;
        if (id >= search.args.block.vocab_size || !(search.is_raw || tile.x[group][i] > kLowest)) continue;
        const uint64_t key = make_key(tile.x[group][i], id);
        if (key >= search.begin_key && key < search.end_key) use(key);
      }
    }
  }
}

// Among the keys of the search, in falling order: the first with which the weight reaches the target; 0 if none does.
template <bool kByMass>
__device__ inline uint64_t key_at(const RowSearch& search, uint64_t target, SelectShared& shared) {
  DigitShared& digits = shared.digits;
  uint64_t found = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    digits.low[threadIdx.x] = 0;
    digits.high[threadIdx.x] = 0;
    __syncthreads();  // the histogram is empty
    for_each_key(search, shared, [&](uint64_t key) {
      if (shift < 56 && key >> (shift + 8) != found >> (shift + 8)) return;
      const auto slot = 255 - (key >> shift & 255);
      add_mass(&digits.low[slot], &digits.high[slot], kByMass ? fixed_mass(value_of(key), search.max) : 1);
    });
    __syncthreads();  // the histogram is full
    const auto weight_at = [&](int i) { return uint64_t{digits.high[i]} << 32 | digits.low[i]; };
    const Crossing crossing = find_crossing(kSamplingThreads, target, weight_at, shared.scratch);
    if (crossing.index == kSamplingThreads) return 0;
    found |= uint64_t{255u - static_cast<unsigned>(crossing.index)} << shift;
    target -= crossing.before;
  }
  return found;
}

__device__ inline uint64_t mass_of_search(const RowSearch& search, SelectShared& shared) {
  uint64_t mass = 0;
  for_each_key(search, shared, [&](uint64_t key) { mass += fixed_mass(value_of(key), search.max); });
  return block_scan(mass, shared.scratch).total;
}

__device__ inline Drawn draw_exactly(const SamplingArgs& args, const SamplingRow& row, int32_t row_index,
                                     const RowState& state, SelectShared& shared) {
  RowSearch search = {args, row, row_index, false, state.max, make_key(state.bound, INT32_MAX), ~uint64_t{0}};
  if (has_top_k(row, args.block.vocab_size)) {
    const uint64_t kth = key_at<false>(search, static_cast<uint64_t>(row.top_k), shared);
    search.begin_key = larger(search.begin_key, kth >> 32 << 32);  // with the ties of its value
  }
  if (row.top_p < 1.0f) {
    const uint64_t total =
        needs_row_mass(row, args.block.vocab_size) ? state.total_mass : mass_of_search(search, shared);
    search.begin_key = larger(search.begin_key, key_at<true>(search, nucleus_mass(row.top_p, total), shared));
  }
  uint64_t best = 0;
  for_each_key(search, shared, [&](uint64_t key) { best = larger(best, noisy_key(row, value_of(key), id_of(key))); });
  return {id_of(block_max(best, shared.scratch)), search.begin_key};
}

}  // namespace quire::cuda
