// Makes the plan (plan.h) from query_start and kv_lens, in one block of kPlanThreads threads.
//
//   1. thread = sequence    how many row tiles; a scan places them; a warp writes the tiles of its 32 sequences
//   2. thread = row tile    units; a scan numbers them
//   3. thread = slot        its first unit, by division; tile, head and split by bisection; a scan places its states
//   4.                      if the states do not fit, slots move back to where a (tile, head) begins: nothing is shared
// Barriers separate the passes, which read what other threads wrote to memory; and guard the warp sums of the scan.
// Bytes: 8 a sequence, 36 a tile, 36 a slot: a few microseconds, all latency.
#pragma once

#include "cuda/attention/plan.h"
#include "cuda/attention/visible.cuh"
#include "cuda/simt/simt.h"

namespace quire::cuda {

constexpr int kPlanThreads = 256;

struct PlanArgs {
  PlanView plan;
  const int32_t* query_start;
  const int32_t* kv_lens;
  int32_t num_seqs;
  int32_t group;  // query heads a KV head
  int32_t num_kv_heads;
  int32_t tile_rows;
  int32_t window;
  bool causal;
  int32_t max_slots;
  int64_t max_state_rows;
};

struct PlanShared {
  int64_t warp_sums[kPlanThreads / 32];
};

// Sum of the values of all lower threads; *total: of all threads.
__device__ inline int64_t exclusive_scan(PlanShared& s, int64_t value, int64_t* total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t sum = value;
  for (int step = 1; step < 32; step *= 2) {
    const int64_t lower = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += lower;
  }
  if (lane == 31) s.warp_sums[warp] = sum;
  __syncthreads();
  int64_t before = 0, all = 0;
  for (int i = 0; i < kPlanThreads / 32; ++i) {
    if (i < warp) before += s.warp_sums[i];
    all += s.warp_sums[i];
  }
  __syncthreads();  // the sums are free for the next scan
  *total = all;
  return before + sum - value;
}

__device__ inline RowTile make_tile(const PlanArgs& p, int seq, int index) {
  RowTile tile;
  tile.seq = seq;
  tile.first_token = p.query_start[seq];
  const int num_tokens = p.query_start[seq + 1] - tile.first_token, num_rows = num_tokens * p.group;
  tile.kv_len = p.kv_lens[seq];
  tile.first_position = tile.kv_len - num_tokens;
  tile.row_begin = index * p.tile_rows;
  tile.num_rows = min(p.tile_rows, num_rows - tile.row_begin);
  const int first = tile.first_position + tile.row_begin / p.group;
  const int last = tile.first_position + (tile.row_begin + tile.num_rows - 1) / p.group;
  const int low = p.window > 0 ? max(0, first - p.window + 1) : 0;
  const int high = end_of_keys(p.causal, p.window, last, tile.kv_len);
  tile.split_begin = low / kSplitKeys;
  tile.split_end = max(tile.split_begin + 1, (high + kSplitKeys - 1) / kSplitKeys);
  return tile;
}

// Pass 1; returns the number of tiles.
__device__ inline int plan_tiles(const PlanArgs& p, PlanShared& s) {
  const int lane = threadIdx.x % 32;
  int64_t begin = 0;
  for (int base = 0; base < p.num_seqs; base += kPlanThreads) {
    const int seq = base + static_cast<int>(threadIdx.x);
    int num_tiles = 0;
    if (seq < p.num_seqs) {
      const int num_rows = (p.query_start[seq + 1] - p.query_start[seq]) * p.group;
      num_tiles = (num_rows + p.tile_rows - 1) / p.tile_rows;
    }
    int64_t total = 0;
    const int first = static_cast<int>(begin + exclusive_scan(s, num_tiles, &total));
    begin += total;
    if (num_tiles == 1) p.plan.tiles[first] = make_tile(p, seq, 0);
    for (uint32_t many = __ballot_sync(~0u, num_tiles > 1); many != 0; many &= many - 1) {
      const int source = __ffs(static_cast<int>(many)) - 1;
      const int count = __shfl_sync(~0u, num_tiles, source), at = __shfl_sync(~0u, first, source);
      const int owner = __shfl_sync(~0u, seq, source);
      for (int i = lane; i < count; i += 32) p.plan.tiles[at + i] = make_tile(p, owner, i);
    }
  }
  return static_cast<int>(begin);
}

// Pass 2; returns the number of units.
__device__ inline int plan_units(const PlanArgs& p, PlanShared& s, int num_tiles) {
  int64_t begin = 0;
  for (int base = 0; base < num_tiles; base += kPlanThreads) {
    const int i = base + static_cast<int>(threadIdx.x);
    const int units = i < num_tiles ? (p.plan.tiles[i].split_end - p.plan.tiles[i].split_begin) * p.num_kv_heads : 0;
    int64_t total = 0;
    const int64_t first = begin + exclusive_scan(s, units, &total);
    if (i < num_tiles) p.plan.first_unit[i] = static_cast<int>(first);
    begin += total;
  }
  if (threadIdx.x == 0) p.plan.first_unit[num_tiles] = static_cast<int>(begin);
  return static_cast<int>(begin);
}

__device__ inline Slot slot_at(const PlanArgs& p, int num_tiles, int num_units, int unit) {
  if (unit >= num_units) return {num_units, num_tiles, 0, 0, 0, 0};
  int low = 0, high = num_tiles;  // first_unit[low] <= unit < first_unit[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (p.plan.first_unit[middle] <= unit ? low : high) = middle;
  }
  const RowTile& tile = p.plan.tiles[low];
  const int splits = tile.split_end - tile.split_begin, rest = unit - p.plan.first_unit[low];
  return {unit, low, rest / splits, tile.split_begin + rest % splits, 0, 0};
}

// Rows of states that a slot leaves: those of the (tile, head) it finds begun, and one folded state of the one it does
// not finish.
__device__ inline int64_t state_rows(const PlanArgs& p, const Slot& slot, const Slot& next, int num_tiles) {
  int64_t rows = 0;
  if (slot.tile < num_tiles) {
    const RowTile& tile = p.plan.tiles[slot.tile];
    const int left = min(tile.split_end - slot.split, next.unit - slot.unit);
    if (slot.split > tile.split_begin) rows += int64_t{left} * tile.num_rows;
  }
  if (next.tile < num_tiles) {
    const RowTile& tile = p.plan.tiles[next.tile];
    const int done = next.split - tile.split_begin;
    if (done > 0 && next.unit - done >= slot.unit) rows += tile.num_rows;
  }
  return rows;
}

// Pass 3; returns how many rows of states there are.
__device__ inline int64_t plan_slots(const PlanArgs& p, PlanShared& s, int num_tiles, int num_units, int num_slots) {
  const auto start = [&](int slot) {
    return slot_at(p, num_tiles, num_units, static_cast<int>(int64_t{slot} * num_units / max(num_slots, 1)));
  };
  int64_t begin = 0;
  for (int base = 0; base <= num_slots; base += kPlanThreads) {
    const int i = base + static_cast<int>(threadIdx.x);
    Slot slot{};
    int64_t rows = 0;
    if (i < num_slots) {
      slot = start(i);
      rows = state_rows(p, slot, start(i + 1), num_tiles);
      p.plan.arrivals[i] = 0;
    } else if (i == num_slots) {
      slot = {num_units, num_tiles, 0, 0, 0, 0};
    }
    int64_t total = 0;
    slot.state_row = begin + exclusive_scan(s, rows, &total);
    if (i <= num_slots) p.plan.slots[i] = slot;
    begin += total;
  }
  return begin;
}

__global__ void __launch_bounds__(kPlanThreads) plan_kernel(const __grid_constant__ PlanArgs p) {
  auto& s = simt::block_shared<PlanShared>();
  simt::grid_dependency_wait();
  const int num_tiles = plan_tiles(p, s);
  __syncthreads();
  const int num_units = plan_units(p, s, num_tiles);
  __syncthreads();
  const int num_slots = min(p.max_slots, num_units);
  const int64_t num_state_rows = plan_slots(p, s, num_tiles, num_units, num_slots);
  if (threadIdx.x == 0) {
    p.plan.header->num_tiles = num_tiles;
    p.plan.header->num_slots = num_slots;
    p.plan.header->num_units = num_units;
  }
  if (num_state_rows <= p.max_state_rows) return;
  for (int i = static_cast<int>(threadIdx.x); i < num_slots; i += kPlanThreads) {  // each its own since pass 3
    Slot& slot = p.plan.slots[i];
    const int begin = p.plan.tiles[slot.tile].split_begin;
    slot.unit -= slot.split - begin;
    slot.split = begin;
  }
}

}  // namespace quire::cuda
