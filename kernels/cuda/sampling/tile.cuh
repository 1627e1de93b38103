// A slice of a row in registers: loaded, edited as the row asks, and searched for the best logit + noise.
//
// Mapping: thread t of 256 has the groups of four tokens t, t + 256, t + 512, t + 768 of its slice: 16-byte loads, and
// a group is one Philox block. Beyond the vocabulary a tile holds -infinity.
// Edits go through shared memory: every block of a row reads all lists of the row and keeps what lies in its slice.
// Biases are added by one warp in the order of the list (a token may come twice); counts name a token once.
#pragma once

#include "cuda/sampling/block.cuh"

namespace quire::cuda {

struct Tile {
  float x[kGroups][4];
};

struct EditShared {
  float x[kSliceTokens];
  uint32_t allowed[kSliceTokens / 32];
  uint32_t banned[kSliceTokens / 32];
};

__device__ inline int32_t group_begin(int32_t slice, int group) {
  return slice * kSliceTokens + group * 4 * kSamplingThreads + 4 * static_cast<int32_t>(threadIdx.x);
}

__device__ inline bool is_sampled(const SamplingRow& row) { return row.temperature >= 1e-5f; }
__device__ inline bool has_top_k(const SamplingRow& row, int32_t vocab_size) {
  return row.top_k > 0 && row.top_k < vocab_size;
}
__device__ inline bool is_filtered(const SamplingRow& row, int32_t vocab_size) {
  return row.min_p > 0.0f || row.top_p < 1.0f || has_top_k(row, vocab_size);
}
// Whether top_p refers to the mass of the whole row, not of what other filters leave.
__device__ inline bool needs_row_mass(const SamplingRow& row, int32_t vocab_size) {
  return row.top_p < 1.0f && !(row.min_p > 0.0f) && !has_top_k(row, vocab_size);
}
__device__ inline bool has_penalty(const SamplingRow& row) {
  return row.repetition_penalty != 1.0f || row.frequency_penalty != 0.0f || row.presence_penalty != 0.0f;
}
__device__ inline bool has_edits(const SamplingRow& row) {
  return row.allowed_mask != nullptr || row.num_allowed_ids > 0 || row.num_banned_ids > 0 || row.num_biases > 0 ||
         (has_penalty(row) && row.num_counts > 0);
}
__device__ inline SamplingRow row_of(const SamplingArgs& args, int32_t row_index) {
  SamplingRow row = args.block.rows[row_index];
  if (!args.reports) row.num_logprobs = -1;
  return row;
}
// A row that wants logprobs keeps its raw logits, and every kernel edits its tiles anew; any other is edited once.
__device__ inline bool keeps_raw(const SamplingRow& row) { return row.num_logprobs >= 0; }

// The logits as they are in memory; NaN counts as -infinity.
__device__ inline void load_tile(const SamplingArgs& args, int32_t row, int32_t slice, Tile& tile) {
  const float* logits = args.block.logits + row * args.block.logits_stride;
  const int32_t n = args.block.vocab_size;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const int32_t begin = group_begin(slice, group);
    float4 x = make_float4(kLowest, kLowest, kLowest, kLowest);
    if (args.is_wide && begin + 4 <= n) {
      x = *reinterpret_cast<const float4*>(logits + begin);
    } else {
      if (begin < n) x.x = logits[begin];
      if (begin + 1 < n) x.y = logits[begin + 1];
      if (begin + 2 < n) x.z = logits[begin + 2];
      if (begin + 3 < n) x.w = logits[begin + 3];
    }
    tile.x[group][0] = x.x;
    tile.x[group][1] = x.y;
    tile.x[group][2] = x.z;
    tile.x[group][3] = x.w;
#pragma unroll
    for (int i = 0; i < 4; ++i) tile.x[group][i] = tile.x[group][i] == tile.x[group][i] ? tile.x[group][i] : kLowest;
  }
}

__device__ inline void store_tile(const SamplingArgs& args, int32_t row, int32_t slice, const Tile& tile) {
  float* logits = args.block.logits + row * args.block.logits_stride;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t id = group_begin(slice, group) + i;
      if (id < args.block.vocab_size) logits[id] = tile.x[group][i];
    }
  }
}

__device__ inline bool is_masked(const uint32_t* mask, int32_t id) {
  return mask != nullptr && (mask[id / 32] >> id % 32 & 1) == 0;
}

// Sets a bit for each listed id in [begin, begin + kSliceTokens) that the mask (null: none) lets through.
__device__ inline void mark_ids(const int32_t* ids, int32_t count, const uint32_t* mask, int32_t begin,
                                uint32_t* marks) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kSamplingThreads) {
    const auto at = static_cast<uint32_t>(ids[i] - begin);
    if (at >= static_cast<uint32_t>(kSliceTokens) || is_masked(mask, ids[i])) continue;
    atomicOr(&marks[at / 32], 1u << at % 32);
  }
}

// Fills shared.allowed, which has the mask in it, and shared.banned for a slice. A barrier on both sides.
__device__ inline void mark_slice(const SamplingRow& row, int32_t slice, int32_t vocab_size, EditShared& shared) {
  const int32_t first_word = slice * (kSliceTokens / 32);
  const int32_t num_words = row.allowed_mask == nullptr ? 0 : (vocab_size + 31) / 32 - first_word;
  for (int i = static_cast<int>(threadIdx.x); i < kSliceTokens / 32; i += kSamplingThreads) {
    shared.allowed[i] = row.num_allowed_ids > 0 ? 0u : i < num_words ? row.allowed_mask[first_word + i] : ~0u;
    shared.banned[i] = 0u;
  }
  __syncthreads();  // the marks are clear
  mark_ids(row.allowed_ids, row.num_allowed_ids, row.allowed_mask, slice * kSliceTokens, shared.allowed);
  mark_ids(row.banned_ids, row.num_banned_ids, nullptr, slice * kSliceTokens, shared.banned);
  __syncthreads();  // all marks are set
}

// One warp, 32 entries at a time: entries of one token are added in their order.
__device__ inline void add_biases(const SamplingRow& row, int32_t begin, float* x) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x);
  for (int32_t first = 0; first < row.num_biases; first += 32) {
    TokenBias entry;
    if (first + lane < row.num_biases) entry = row.biases[first + lane];
    uint32_t at = first + lane < row.num_biases ? static_cast<uint32_t>(entry.token_id - begin) : ~0u;
    const bool is_here = at < static_cast<uint32_t>(kSliceTokens);
    if (!__any_sync(~0u, is_here)) continue;
    if (!is_here) at = ~static_cast<uint32_t>(lane);  // equal to nobody's
    const uint32_t equals = __match_any_sync(~0u, at);
    const auto turn = static_cast<uint32_t>(__popc(equals & ((1u << lane) - 1)));
    const uint32_t last_turn = __reduce_max_sync(~0u, turn);
    for (uint32_t i = 0; i <= last_turn; ++i) {
      if (is_here && turn == i) x[at] = __fadd_rn(x[at], entry.bias);
      __syncwarp(~0u);
    }
  }
}

__device__ inline float penalised(const SamplingRow& row, float logit, int32_t output_count) {
  if (row.repetition_penalty != 1.0f) {
    logit = logit > 0.0f ? __fdiv_rn(logit, row.repetition_penalty) : __fmul_rn(logit, row.repetition_penalty);
  }
  logit = __fsub_rn(logit, __fmul_rn(row.frequency_penalty, static_cast<float>(output_count)));
  return output_count > 0 ? __fsub_rn(logit, row.presence_penalty) : logit;
}

// After it shared.x is still being read: whoever writes there passes a barrier first.
__device__ inline void edit_tile(const SamplingRow& row, int32_t slice, int32_t vocab_size, EditShared& shared,
                                 Tile& tile) {
  mark_slice(row, slice, vocab_size, shared);
  const int32_t first = slice * kSliceTokens;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const int32_t at = group_begin(slice, group) - first;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool stays = (shared.allowed[at / 32] & ~shared.banned[at / 32]) >> (at % 32 + i) & 1;
      shared.x[at + i] = stays ? tile.x[group][i] : kLowest;
    }
  }
  __syncthreads();  // the slice is there, for edits by other threads
  if (threadIdx.x < 32) add_biases(row, first, shared.x);
  __syncthreads();  // biases come before penalties
  for (int32_t i = static_cast<int32_t>(threadIdx.x); has_penalty(row) && i < row.num_counts; i += kSamplingThreads) {
    const TokenCount count = row.counts[i];
    const auto at = static_cast<uint32_t>(count.token_id - first);
    if (at < static_cast<uint32_t>(kSliceTokens)) shared.x[at] = penalised(row, shared.x[at], count.output_count);
  }
  __syncthreads();  // the edits are done
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) tile.x[group][i] = shared.x[group_begin(slice, group) - first + i];
  }
}

__device__ inline void divide_tile(const SamplingRow& row, Tile& tile) {
  if (!is_sampled(row) || row.temperature == 1.0f) return;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) tile.x[group][i] = __fdiv_rn(tile.x[group][i], row.temperature);
  }
}

// What is sampled from, for kernels after the first.
__device__ inline void load_final_tile(const SamplingArgs& args, const SamplingRow& row, int32_t row_index,
                                       int32_t slice, EditShared& shared, Tile& tile) {
  load_tile(args, row_index, slice, tile);
  if (keeps_raw(row) && has_edits(row)) edit_tile(row, slice, args.block.vocab_size, shared, tile);
  divide_tile(row, tile);
}

// The largest key of a tile, 0 beyond the vocabulary.
__device__ inline uint64_t best_of_tile(const Tile& tile, int32_t slice, int32_t vocab_size) {
  uint64_t best = 0;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const int32_t begin = group_begin(slice, group);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (begin + i < vocab_size) best = larger(best, make_key(tile.x[group][i], begin + i));
    }
  }
  return best;
}

__device__ inline uint32_t noise_word(const Philox4& bits, int i) {
  return i == 0 ? bits.x : i == 1 ? bits.y : i == 2 ? bits.z : bits.w;
}

__device__ inline uint64_t noisy_key(const SamplingRow& row, float x, int32_t id) {
  const Philox4 bits = noise_bits(row.seed, row.output_index, id / 4);
  return make_key(__fadd_rn(x, device_gumbel(noise_word(bits, id % 4))), id);
}

// The best x + noise of the tile's tokens that may be drawn, or a key that cannot be the best of the row; -infinity is
// never drawn. Threads draw for their largest token first: what cannot reach the best of these costs a comparison, or
// Philox and a bound of its noise.
template <typename MayDraw>
__device__ inline uint64_t draw_from_tile(const SamplingRow& row, const Tile& tile, int32_t slice,
                                          const MayDraw& may_draw, BlockScratch& scratch) {
  uint64_t top = 0;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float x = tile.x[group][i];
      if (x > kLowest && may_draw(x, group_begin(slice, group) + i)) {
        top = larger(top, make_key(x, group_begin(slice, group) + i));
      }
    }
  }
  uint64_t best = block_max(top == 0 ? 0 : noisy_key(row, value_of(top), id_of(top)), scratch);
  if (top == 0) return best;
  float floor = value_of(best);
  if (value_of(top) + kMaxGumbel < floor) return best;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const int32_t begin = group_begin(slice, group);
    const float (&x)[4] = tile.x[group];
    if (fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])) + kMaxGumbel < floor) continue;
    const Philox4 bits = noise_bits(row.seed, row.output_index, begin / 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = noise_word(bits, i);
      if (!(x[i] > kLowest) || x[i] + gumbel_upper_bound(word) < floor || !may_draw(x[i], begin + i)) continue;
      best = larger(best, make_key(__fadd_rn(x[i], device_gumbel(word)), begin + i));
      floor = value_of(best);
    }
  }
  return best;
}

}  // namespace quire::cuda
