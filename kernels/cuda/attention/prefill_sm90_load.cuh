// Work and loads of prefill_sm90.cuh: which tile of queries a block takes next, and the producer warp that brings Q, K
// and V of it by TMA.
//
// Tiles. A tile is up to tokens_per_tile consecutive tokens of one sequence and all heads of one KV head, so that a
// tile has tokens * group rows. Tiles have slots: those of sequence s begin at query_start[s] / tokens_per_tile + s,
// which leaves room for every sequence without a prefix sum; a slot past the last tile of its sequence is empty. Within
// a sequence the last tokens, which see the most keys, come first. Block b takes pieces b, 2 g - 1 - b, 2 g + b, ... of
// a grid of g: there and back, so that long and short ones meet in each block.
//
// Pages. Keys are loaded in boxes of gcd(block_size, kBlockN) tokens, which lie in one page and one tile, by as many
// lanes as there are boxes. Pages past kv_len or before every window are never named. Where a V tile has keys that were
// not loaded or lie past kv_len, the producer waits for its bytes and zeroes those rows, because 0 * NaN is NaN; K
// needs none of this, for such scores are replaced.
#pragma once

#include <cstdint>

#include "cuda/simt/hopper.h"

namespace quire::cuda {

// Division by a number the host knows, as a multiplication: exact for dividends below 2^32 / divisor (2^25 tokens with
// pages of 128). Divisors are at least 2.
struct Divider {
  int32_t divisor;
  uint32_t reciprocal;
  constexpr Divider(int32_t d = 2)  // NOLINT: an argument block is made by {}
      : divisor(d),
        reciprocal(
            static_cast<uint32_t>(((uint64_t{1} << 32) + static_cast<uint32_t>(d) - 1) / static_cast<uint32_t>(d))) {}
  __device__ __forceinline__ int floor(int dividend) const {
    return static_cast<int>(__umulhi(static_cast<uint32_t>(dividend), reciprocal));
  }
  __device__ __forceinline__ int ceil(int dividend) const { return floor(dividend + divisor - 1); }
};

struct PrefillArgs {
  simt::TensorMap q, k, v;
  const int32_t* query_start;
  const int32_t* kv_lens;
  const int32_t* block_tables;
  int64_t block_table_stride;
  const float* sinks;
  void* out;
  int64_t out_stride;
  int32_t num_seqs, num_kv_heads, group;
  Divider tokens_per_tile, block_size, box_tokens;
  int32_t window;
  float scale_log2;  // scale * log2(e)
  bool causal;
};

constexpr int kPanelColumns = 64;  // a line of 128 bytes, as the widest swizzle has it
constexpr int kLineBytes = 128;

// Rows of kHeadDim 16-bit elements as panels of 64 columns.
template <int kHeadDim, int kRows>
struct SharedTile {
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kPanelBytes = kRows * kLineBytes;
  alignas(1024) unsigned char bytes[kPanels * kPanelBytes];
};

struct PrefillTile {
  int32_t num_tokens;      // 0: there are no more tiles
  int32_t first_token;     // of the launch
  int32_t first_position;  // of that token in its sequence
  int32_t kv_head;
  int32_t kv_len;
  int32_t key_begin, key_end;  // what the tile's rows see, all together
  int32_t sequence;
};

// Full: bytes are there. Empty: all readers are done.
template <int kHeadDim, int kBlockM, int kBlockN, int kStages>
struct PrefillShared {
  SharedTile<kHeadDim, kBlockM> q;
  SharedTile<kHeadDim, kBlockN> kv[2][kStages];  // K, V
  PrefillTile tile;
  simt::Mbarrier q_full, q_empty;  // of q and tile
  simt::Mbarrier full[2][kStages], empty[2][kStages];
  simt::Mbarrier landed;  // the producer's own, before it zeroes rows
};
constexpr int kK = 0, kV = 1;

// A place in a ring of kStages; parity is that of the stage's next "full".
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

__device__ __forceinline__ int num_tile_slots(const PrefillArgs& p) {
  return p.tokens_per_tile.floor(p.query_start[p.num_seqs]) + p.num_seqs;
}

// Which tile a slot is.
struct TilePlace {
  int sequence;
  int first;  // query of the sequence; negative: the slot is empty
};

__device__ __forceinline__ TilePlace find_tile(const PrefillArgs& p, int slot) {
  int low = 0, high = p.num_seqs - 1;  // the last sequence whose slots begin at or before this one
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (p.tokens_per_tile.floor(p.query_start[middle]) + middle <= slot) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int begin = p.query_start[low], num_queries = p.query_start[low + 1] - begin;
  const int num_tiles = p.tokens_per_tile.ceil(num_queries);
  const int from_last = slot - (p.tokens_per_tile.floor(begin) + low);
  return {low, (num_tiles - 1 - from_last) * p.tokens_per_tile.divisor};
}

__device__ __forceinline__ void describe_tile(const PrefillArgs& p, TilePlace place, int kv_head, PrefillTile* tile) {
  const int begin = p.query_start[place.sequence], num_queries = p.query_start[place.sequence + 1] - begin;
  tile->num_tokens = min(p.tokens_per_tile.divisor, num_queries - place.first);
  tile->first_token = begin + place.first;
  tile->kv_len = p.kv_lens[place.sequence];
  tile->first_position = tile->kv_len - num_queries + place.first;
  tile->kv_head = kv_head;
  tile->key_begin = p.window > 0 ? max(0, tile->first_position - p.window + 1) : 0;
  tile->key_end = p.causal ? tile->first_position + tile->num_tokens : tile->kv_len;
  tile->sequence = place.sequence;
}

// The boxes of a K or V tile that have keys to load.
struct BoxRange {
  int begin, end;
};

template <int kBlockN>
__device__ __forceinline__ BoxRange boxes_of(const PrefillArgs& p, const PrefillTile& tile, int first_key) {
  const int begin = p.box_tokens.floor(max(0, tile.key_begin - first_key));
  const int end = p.box_tokens.ceil(min(kBlockN, tile.kv_len - first_key));
  return {begin, end};
}

// Rows [begin, end) of a tile become zeros. One warp.
template <int kHeadDim, int kRows>
__device__ __forceinline__ void zero_rows(SharedTile<kHeadDim, kRows>& to, int begin, int end) {
  using Shared = SharedTile<kHeadDim, kRows>;
  constexpr int kPieces = kLineBytes / 16;
#pragma unroll 1
  for (int panel = 0; panel < Shared::kPanels; ++panel) {
    auto* lines = reinterpret_cast<uint4*>(to.bytes + panel * Shared::kPanelBytes);
#pragma unroll 1
    for (int i = begin * kPieces + static_cast<int>(threadIdx.x % 32); i < end * kPieces; i += 32) {
      lines[i] = make_uint4(0, 0, 0, 0);
    }
  }
}

// The producer warp. It runs ahead of the consumers by kStages tiles of keys, and over the end of a tile of queries.
template <int kHeadDim, int kBlockM, int kBlockN, int kStages>
class PrefillProducer {
 public:
  using Shared = PrefillShared<kHeadDim, kBlockM, kBlockN, kStages>;
  __device__ __forceinline__ PrefillProducer(const PrefillArgs& p, Shared& s) : p_(p), s_(s) {}

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (int turn = 0;; ++turn) {
      const int slots = num_tile_slots(p_), grid = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
      const int piece = turn * grid + (turn & 1 ? grid - 1 - block : block);
      if (turn * grid >= slots * p_.num_kv_heads) break;
      if (piece >= slots * p_.num_kv_heads) continue;
      const int kv_head = piece / slots;
      const TilePlace place = find_tile(p_, piece - kv_head * slots);
      if (place.first < 0) continue;
      wait_for_queries();
      if (threadIdx.x % 32 == 0) load_queries(place, kv_head);
      __syncwarp(0xffffffffu);
      load_all_keys();
    }
    wait_for_queries();
    if (threadIdx.x % 32 != 0) return;
    s_.tile.num_tokens = 0;  // ends the consumers' loop
    simt::mbarrier_arrive(s_.q_full);
  }

 private:
  // Until the consumers have done with the queries and the description of the last tile.
  __device__ __forceinline__ void wait_for_queries() {
    simt::mbarrier_wait(s_.q_empty, (parities_ & 1) ^ 1);
    parities_ ^= 1;
  }

  // One lane. Also hands the tile's description over, to the consumers and to the rest of this warp.
  __device__ __forceinline__ void load_queries(TilePlace place, int kv_head) {
    using Tile = SharedTile<kHeadDim, kBlockM>;
    describe_tile(p_, place, kv_head, &s_.tile);
    // A box is always whole: rows past the sequence's end are of no use to anybody, and those past the tensor's zeros.
    const int bytes = p_.tokens_per_tile.divisor * p_.group * Tile::kPanels * kLineBytes;
    simt::mbarrier_arrive_expect_tx(s_.q_full, static_cast<uint32_t>(bytes));
#pragma unroll 1
    for (int panel = 0; panel < Tile::kPanels; ++panel) {
      simt::tma_load(s_.q.bytes + panel * Tile::kPanelBytes, p_.q, s_.q_full,
                     {panel * kPanelColumns, 0, kv_head, s_.tile.first_token});
    }
  }

  // K one tile ahead of V, as the consumers want them. One place that loads: the warp has few registers.
  __device__ __forceinline__ void load_all_keys() {
    const auto first_tile = [this] { return s_.tile.key_begin / kBlockN; };
    const auto last_tile = [this] { return (s_.tile.key_end - 1) / kBlockN; };
#pragma unroll 1
    for (int k_tile = last_tile(); k_tile >= first_tile() - 1; --k_tile) {
#pragma unroll 1
      for (int which = kK; which <= kV; ++which) {
        const int tile = k_tile + which;
        if (tile >= first_tile() && tile <= last_tile()) load_keys(which, num_loaded_ - which, tile * kBlockN);
      }
      if (k_tile >= first_tile()) ++num_loaded_;
    }
    __syncwarp(0xffffffffu);  // nobody reads the description any more
  }

  // One tile of K or V. Where rows of V must be zeroed its bytes are announced to this warp alone, and "full" is said
  // by hand.
  __device__ __forceinline__ void load_keys(int which, int place, int first_key) {
    const int stage = place % kStages;
    const PrefillTile& tile = s_.tile;
    const BoxRange boxes = boxes_of<kBlockN>(p_, tile, first_key);
    const int skipped = boxes.begin * p_.box_tokens.divisor, known = min(tile.kv_len - first_key, kBlockN);
    const bool has_gaps = which == kV && (skipped > 0 || known < kBlockN);
    simt::mbarrier_wait(s_.empty[which][stage], (place / kStages & 1) ^ 1);
    issue_boxes(which, first_key, boxes, s_.kv[which][stage], has_gaps ? s_.landed : s_.full[which][stage]);
    if (has_gaps) {
      simt::mbarrier_wait(s_.landed, parities_ >> 1);
      parities_ ^= 2;
      zero_rows(s_.kv[kV][stage], 0, skipped);
      zero_rows(s_.kv[kV][stage], known, kBlockN);
      simt::fence_proxy_async();
      __syncwarp(0xffffffffu);
      if (threadIdx.x % 32 == 0) simt::mbarrier_arrive(s_.full[kV][stage]);
    }
  }

  __device__ __forceinline__ void issue_boxes(int which, int first_key, BoxRange boxes,
                                              SharedTile<kHeadDim, kBlockN>& to, simt::Mbarrier& landed) {
    using Tile = SharedTile<kHeadDim, kBlockN>;
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int count = (boxes.end - boxes.begin) * Tile::kPanels, box_bytes = p_.box_tokens.divisor * kLineBytes;
    if (lane == 0) simt::mbarrier_arrive_expect_tx(landed, static_cast<uint32_t>(count * box_bytes));
    __syncwarp(0xffffffffu);
    const int32_t* table = p_.block_tables + s_.tile.sequence * p_.block_table_stride;
#pragma unroll 1
    for (int i = lane; i < count; i += 32) {
      const int box = boxes.begin + i / Tile::kPanels, panel = i % Tile::kPanels;
      const int page = p_.block_size.floor(first_key + box * p_.box_tokens.divisor);
      const int token = first_key + box * p_.box_tokens.divisor - page * p_.block_size.divisor;
      const int row = (table[page] * p_.num_kv_heads + s_.tile.kv_head) * p_.block_size.divisor + token;
      simt::tma_load(to.bytes + panel * Tile::kPanelBytes + box * box_bytes, which == kK ? p_.k : p_.v, landed,
                     {panel * kPanelColumns, row});
    }
  }

  const PrefillArgs& p_;
  Shared& s_;
  int num_loaded_ = 0;     // tiles of K so far
  uint32_t parities_ = 0;  // of the next phases of q_empty (bit 0) and landed (bit 1)
};

}  // namespace quire::cuda
