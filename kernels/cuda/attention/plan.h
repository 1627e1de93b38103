// The plan of a step's attention: who computes what, made on the device once and read by the launches of all layers.
//
// Query rows are (token, head of the group) pairs of one sequence and one KV head, token-major, cut into row tiles of
// at most tile_rows rows. Keys are cut into splits of kSplitKeys at fixed positions. A *unit* is one split of one row
// tile of one KV head; units are numbered tile by tile, head by head, split by split, and dealt out in equal contiguous
// ranges to `num_slots` slots, one block each: no block has more than one unit more than another, whatever the mix of
// lengths. Where a range ends inside a (tile, head), the blocks that share it leave states in memory and the last one
// to finish merges them in order (attend.cuh).
//
// The states of one shared (tile, head) lie one after the other: the folded one of the slot where it begins (its
// owner), then one of each further split.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quire::cuda {

constexpr int kChunkKeys = 64;   // keys of one pass of the online softmax
constexpr int kSplitKeys = 256;  // keys of one partial state
constexpr int kShortRows = 16;   // rows of the smaller tile shape
constexpr int kMaxSlots = 1024;

// Rows of a row tile.
constexpr int tile_rows(int head_dim) { return head_dim <= 128 ? 32 : kShortRows; }

struct alignas(16) RowTile {
  int32_t seq;
  int32_t first_token;     // of the sequence in the launch
  int32_t first_position;  // of that token
  int32_t kv_len;
  int32_t row_begin, num_rows;
  int32_t split_begin, split_end;  // what the rows see; at least one
};

// Where the range of a slot begins.
struct alignas(16) Slot {
  int32_t unit;
  int32_t tile, head, split;
  int64_t state_row;  // where in the states it writes those of the (tile, head) that it finds begun
  int64_t unused;
};

struct PlanHeader {
  int32_t num_tiles;
  int32_t num_slots;
  int32_t num_units;
  int32_t unused[13];
};

// Pointers into the bytes of a plan.
struct PlanView {
  PlanHeader* header;
  Slot* slots;          // [num_slots + 1]
  int32_t* arrivals;    // [num_slots] blocks that have left their states; 0 between launches
  RowTile* tiles;       // [num_tiles]
  int32_t* first_unit;  // [num_tiles + 1]
};

// The first slot whose range holds `unit`: slots begin at floor(slot * num_units / num_slots).
constexpr int32_t slot_of_unit(const PlanHeader& header, int32_t unit) {
  const int64_t slots = header.num_slots, units = header.num_units;
  return static_cast<int32_t>(((int64_t{unit} + 1) * slots + units - 1) / units - 1);
}

constexpr int64_t max_row_tiles(int64_t max_tokens, int64_t max_seqs, int32_t num_heads) {
  return max_seqs + max_tokens * num_heads / kShortRows;
}

}  // namespace quire::cuda
