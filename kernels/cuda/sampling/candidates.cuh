// Lists and histograms of a row's candidates, and the token that is drawn from a sorted list.
//
// A bin is a range of distance from the largest logit: a token in a lower bin has a larger logit, so that the filters,
// which only look at the order, cut within one bin. Counts and masses are integers: atomics give the same bits in every
// order. Shared histograms hold masses as two words, because shared memory adds 32 bits at a time.
#pragma once

#include "cuda/sampling/tile.cuh"

namespace quire::cuda {

struct BinShared {
  uint32_t counts[kNumBins];
  uint32_t masses_low[kNumBins];
  uint32_t masses_high[kNumBins];
};

// The histogram of one digit of the keys (exact.cuh).
struct DigitShared {
  uint32_t low[kSamplingThreads];
  uint32_t high[kSamplingThreads];
};

struct SelectShared {
  BlockScratch scratch;
  DigitShared digits;
  uint32_t first_listed;
  uint32_t blocks_before;
  union {
    EditShared edit;
    BinShared bins;
    uint64_t keys[kMaxListed];
  };
};

// 128 bins an octave of max - x, from 2^-7 up; falling in x.
__device__ inline int bin_of(float x, float max) {
  const int bin = static_cast<int>(__float_as_uint(__fsub_rn(max, x)) >> 16) - (120 << 7);
  return bin < 0 ? 0 : min(bin, kNumBins - 1);
}

__device__ inline void add_mass(uint32_t* low, uint32_t* high, uint64_t mass) {
  const auto low_part = static_cast<uint32_t>(mass);
  const uint32_t old = atomicAdd(low, low_part);
  const uint32_t high_part = static_cast<uint32_t>(mass >> 32) + (old + low_part < old ? 1u : 0u);
  if (high_part != 0) atomicAdd(high, high_part);
}

// Appends the tile's tokens that belong(x, id) to a row's list, as far as it has room; *num_listed counts all.
template <typename Belongs>
__device__ inline uint32_t list_tokens(const Tile& tile, int32_t slice, const Belongs& belongs, uint64_t* listed,
                                       uint32_t capacity, uint32_t* num_listed, SelectShared& shared) {
  uint32_t mine = 0;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) mine += belongs(tile.x[group][i], group_begin(slice, group) + i) ? 1u : 0u;
  }
  const Scan scan = block_scan(mine, shared.scratch);
  const auto total = static_cast<uint32_t>(scan.total);
  if (total == 0) return 0;
  if (threadIdx.x == 0) shared.first_listed = atomicAdd(num_listed, total);
  __syncthreads();  // the place in the list is known; the next scan's barriers protect it
  uint32_t at = shared.first_listed + static_cast<uint32_t>(scan.before);
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float x = tile.x[group][i];
      const int32_t id = group_begin(slice, group) + i;
      if (!belongs(x, id)) continue;
      if (at < capacity) listed[at] = make_key(x, id);
      ++at;
    }
  }
  return total;
}

// True in all threads of the row's last block, which then sees what the others wrote (read it past L1).
__device__ inline bool is_last_block(RowState& state, uint32_t num_blocks, SelectShared& shared) {
  __threadfence();  // what this thread wrote comes before the count
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.blocks_before = atomicAdd(&state.blocks_done, 1u);
    __threadfence();
  }
  __syncthreads();
  return shared.blocks_before + 1 == num_blocks;
}

// What lies before a list, and is drawn from elsewhere.
struct Before {
  uint32_t count;
  uint64_t mass;
  uint64_t total_mass;  // 0: the mass of the tokens that top_k lets stay
  uint64_t drawn;
};

// Who is drawn from a list, and the key below which nobody could be.
struct Drawn {
  int32_t token;
  uint64_t cut;
};

// The token drawn from a list that has everything the filters can cut. Sorts it; then top_k is an index (and the ties
// of its value), top_p a prefix of the masses. Called after is_last_block, whose barriers end all use of shared memory.
__device__ inline Drawn draw_from_list(const SamplingRow& row, bool has_k, const uint64_t* listed, uint32_t count,
                                       float max, float bound, const Before& before, SelectShared& shared) {
  uint64_t* keys = shared.keys;
  const auto n = static_cast<int>(count), thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < n; i += kSamplingThreads) keys[i] = __ldcg(listed + i);
  sort_falling(keys, n);
  const int64_t k = has_k ? int64_t{row.top_k} - before.count : int64_t{n};
  uint64_t lowest = 0;  // no key below it may be drawn
  if (k <= n && n > 0) lowest = k > 0 ? keys[k - 1] >> 32 << 32 : ~uint64_t{0};
  constexpr int kShare = kMaxListed / kSamplingThreads;
  const int begin = thread * kShare, end = min(n, begin + kShare);
  if (row.top_p < 1.0f) {
    uint64_t mass = 0;
    for (int i = begin; i < end; ++i) mass += keys[i] >= lowest ? fixed_mass(value_of(keys[i]), max) : 0;
    const Scan scan = block_scan(mass, shared.scratch);
    const uint64_t total = before.total_mass != 0 ? before.total_mass : before.mass + scan.total;
    const uint64_t needed = nucleus_mass(row.top_p, total);
    uint64_t through = before.mass + scan.before, last = 0;
    for (int i = begin; i < end && keys[i] >= lowest; ++i) {
      if (through >= needed && before.count + static_cast<uint32_t>(i) > 0) break;
      last = ~keys[i];
      through += fixed_mass(value_of(keys[i]), max);
    }
    last = block_max(last, shared.scratch);  // the complement of the lowest key that stays
    lowest = larger(lowest, last == 0 ? ~uint64_t{0} : ~last);
  }
  uint64_t best = before.drawn;
  for (int i = thread; i < n; i += kSamplingThreads) {
    if (keys[i] >= lowest) best = larger(best, noisy_key(row, value_of(keys[i]), id_of(keys[i])));
  }
  // Where nothing of the list stays, what lies before it does.
  uint64_t cut = make_key(bound, INT32_MAX);
  if (n > 0) cut = lowest == ~uint64_t{0} ? keys[0] + 1 : larger(lowest, keys[n - 1]);
  return {id_of(block_max(best, shared.scratch)), cut};
}

}  // namespace quire::cuda
