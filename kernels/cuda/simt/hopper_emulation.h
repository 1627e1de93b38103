// What hopper.h's instructions do on a CPU. Everything asynchronous is as late as it may be: a TMA copy lands when no
// thread of the block can run, a TMA store at its wait, a wgmma at its wait; until then destinations hold NaN.
// Called by kernel threads only (fibers of one OS thread); state is thread_local and dies with its block.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "base/check.h"
#include "cuda/simt/tc.h"

namespace quire::simt {

// A tensor map as the driver would encode it. strides[i] is in bytes, of dimension i; strides[0] is the element.
struct alignas(64) TensorMap {
  const unsigned char* base = nullptr;
  uint64_t dims[5] = {};
  uint64_t strides[5] = {};
  uint32_t box[5] = {};
  uint32_t element_bytes = 0;
  uint32_t swizzle_bytes = 0;
  int32_t rank = 0;

  uint32_t box_bytes() const { return box[0] * box[1] * box[2] * box[3] * box[4] * element_bytes; }
};

namespace hopper {

inline uint32_t shared_offset(const void* p, const char* name, const Loc& loc) {
  check_shared(p, 1, 1, name, loc);
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - shared_memory());
}

// Where a byte of a tile lies: 16-byte pieces of each 128-byte line change places with the line's number.
inline uint32_t swizzled(uint32_t address, uint32_t swizzle_bytes) {
  const uint32_t mask = swizzle_bytes > 16 ? swizzle_bytes / 16 - 1 : 0;
  return address ^ (((address >> 7) & mask) << 4);
}

// An mbarrier in its 64 bits. Shared memory starts as 0xFF: a count of 65535 was never initialised.
struct BarrierState {
  uint16_t count, pending;
  int32_t tx : 31;
  uint32_t phase : 1;
};
static_assert(sizeof(BarrierState) == 8);

inline BarrierState* state_of(void* barrier, const Loc& loc) {
  check_shared(barrier, 8, 8, "mbarrier", loc);
  auto* state = static_cast<BarrierState*>(barrier);
  if (state->count == 0xFFFF) fail("mbarrier used before mbarrier_init", loc);
  return state;
}

inline void settle(BarrierState* state) {
  if (state->pending != 0 || state->tx != 0) return;
  state->pending = state->count;
  state->phase ^= 1;
  wake(state);
}

inline bool phase_is_complete(void* barrier, uint32_t parity, const Loc& loc) {
  const Quiet quiet;
  return state_of(barrier, loc)->phase != (parity & 1);
}

struct TmaCopy {
  TensorMap map;
  unsigned char* shared;
  BarrierState* barrier;
  int32_t at[5];
  Loc loc;
};

struct TmaStore {
  TmaCopy copy;
  unsigned thread;
  int group;
};

struct Accumulator {
  float* registers[128];
  int columns;
  std::vector<float> value;  // [64][columns]
  int pending = 0;           // instructions issued and not yet executed
};

struct WgmmaOp {
  int columns = 0;
  bool is_f16 = false, a_is_mn_major = false, b_is_mn_major = false, accumulate = false, a_in_registers = false;
  uint64_t a = 0, b = 0;
  const uint32_t* a_registers[128] = {};
  Accumulator* accumulator = nullptr;
  int group = 0;
  Loc loc;
};

struct WarpgroupState {
  std::vector<WgmmaOp> ops;
  std::vector<std::unique_ptr<Accumulator>> accumulators;
  int committed = 0;
  bool fenced = false;
};

struct State {
  uint64_t block = 0;
  std::vector<TmaStore> stores;
  std::vector<int> store_groups = std::vector<int>(1024);  // committed, by thread
  std::vector<WarpgroupState> warpgroups = std::vector<WarpgroupState>(8);
};

// Of the running block.
inline State& state() {
  thread_local State s;
  acquire(&s);  // its memory passes from fiber to fiber
  if (s.block != block_serial()) {
    s = State{};
    s.block = block_serial();
  }
  return s;
}

// Calls piece(shared bytes, global bytes or null when outside of the tensor, count) for every 16 bytes of a box.
template <typename F>
void for_each_piece(const TmaCopy& copy, F&& piece) {
  const TensorMap& map = copy.map;
  check_shared(copy.shared, map.box_bytes(), 1, "TMA box", copy.loc);
  const uint32_t start = shared_offset(copy.shared, "TMA box", copy.loc), line_bytes = map.box[0] * map.element_bytes;
  const uint32_t lines = map.box_bytes() / line_bytes, step = map.element_bytes;
  for (uint32_t line = 0; line < lines; ++line) {
    uint32_t rest = line;
    bool inside = true;
    const unsigned char* global = map.base;
    for (int i = 1; i < map.rank; ++i) {
      const int64_t at = int64_t{copy.at[i]} + rest % map.box[i];
      rest /= map.box[i];
      inside = inside && at >= 0 && static_cast<uint64_t>(at) < map.dims[i];
      if (inside) global += static_cast<uint64_t>(at) * map.strides[i];
    }
    for (uint32_t byte = 0; byte < line_bytes; byte += step) {
      const int64_t x = int64_t{copy.at[0]} + byte / step;
      const bool in = inside && x >= 0 && static_cast<uint64_t>(x) < map.dims[0];
      unsigned char* shared = shared_memory() + swizzled(start + line * line_bytes + byte, map.swizzle_bytes);
      piece(shared, in ? global + static_cast<uint64_t>(x) * step : nullptr, step);
    }
  }
}

inline void land(const TmaCopy& copy) {
  const Quiet quiet;
  for_each_piece(copy, [](unsigned char* shared, const unsigned char* global, uint32_t count) {
    if (global != nullptr) {
      std::memcpy(shared, global, count);
    } else {
      std::memset(shared, 0, count);
    }
  });
  copy.barrier->tx = copy.barrier->tx - static_cast<int32_t>(copy.map.box_bytes());
  settle(copy.barrier);
}

inline TmaCopy checked_copy(void* shared, const TensorMap& map, const int* at, int rank, const Loc& loc) {
  const uint32_t alignment = map.swizzle_bytes >= 32 ? map.swizzle_bytes * 8 : 128;
  check_shared(shared, map.box_bytes(), alignment, "TMA tile", loc);
  if (rank != map.rank) fail("TMA coordinates are not of the tensor map's rank", loc);
  TmaCopy copy{map, static_cast<unsigned char*>(shared), nullptr, {}, loc};
  for (int i = 0; i < rank; ++i) copy.at[i] = at[i];
  return copy;
}

inline void issue_load(void* shared, const TensorMap& map, void* barrier, const int* at, int rank, const Loc& loc) {
  TmaCopy copy = checked_copy(shared, map, at, rank, loc);
  copy.barrier = state_of(barrier, loc);
  typedef uint64_t __attribute__((may_alias)) Word;
  for (uint32_t i = 0; i < map.box_bytes() / 8; ++i) static_cast<Word*>(shared)[i] = ~uint64_t{0};
  release(barrier);  // whoever waits for the bytes comes after these writes
  const Quiet quiet;
  defer([copy] { land(copy); });
}

inline void issue_store(const TensorMap& map, const void* shared, const int* at, int rank, const Loc& loc) {
  const Quiet quiet;
  const unsigned thread = thread_index();
  const TmaCopy copy = checked_copy(const_cast<void*>(shared), map, at, rank, loc);
  state().stores.push_back({copy, thread, state().store_groups[thread]});
}

inline void finish_stores(int pending_groups) {
  const Quiet quiet;
  State& s = state();
  const unsigned thread = thread_index();
  std::vector<TmaStore> rest;
  for (TmaStore& store : s.stores) {
    if (store.thread != thread || store.group >= s.store_groups[thread] - pending_groups) {
      rest.push_back(store);
      continue;
    }
    for_each_piece(store.copy, [](unsigned char* shared, const unsigned char* global, uint32_t count) {
      if (global != nullptr) std::memcpy(const_cast<unsigned char*>(global), shared, count);
    });
  }
  s.stores.swap(rest);
}

inline float to_float(uint16_t bits, bool is_f16) {
  return is_f16 ? float{__ushort_as_half(bits)} : bf16_to_float(bits);
}

inline WarpgroupState& warpgroup() { return state().warpgroups[thread_index() / 128]; }

// Element (row along M or N, k) of an operand in shared memory, by the canonical layouts of the descriptor.
inline float operand(const WgmmaOp& op, uint64_t descriptor, bool is_mn_major, uint32_t row, uint32_t k) {
  constexpr uint32_t kSwizzleBytes[4] = {16, 128, 64, 32};
  const uint32_t span = kSwizzleBytes[descriptor >> 62];
  const auto leading = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
  const auto stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  uint32_t address = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  if (is_mn_major) {
    const uint32_t panel = span / 2;
    const uint32_t next_panel = span == 16 ? stride : leading, next_k = span == 16 ? leading : stride;
    address += row % panel * 2 + row / panel * next_panel + k % 8 * span + k / 8 * next_k;
  } else if (span == 16) {
    address += row % 8 * 16 + row / 8 * stride + k / 8 * leading + k % 8 * 2;
  } else {
    address += row % 8 * span + row / 8 * stride + k * 2;
  }
  address = swizzled(address, span);
  if (address + 2 > shared_memory_bytes()) fail("wgmma operand outside of shared memory", op.loc);
  uint16_t bits;
  std::memcpy(&bits, shared_memory() + address, 2);
  return to_float(bits, op.is_f16);
}

// f(register, element of the 64 x columns matrix): the accumulator fragment of m64nNk16.
template <typename F>
void for_each_register(Accumulator& acc, F&& f) {
  for (int t = 0; t < 128; ++t) {
    for (int i = 0; i < acc.columns / 2; ++i) {
      const int row = t / 32 * 16 + t % 32 / 4 + (i >> 1 & 1) * 8, column = (i >> 2) * 8 + t % 4 * 2 + (i & 1);
      f(acc.registers[t][i], acc.value[static_cast<size_t>(row * acc.columns + column)]);
    }
  }
}

inline void execute(const WgmmaOp& op) {
  struct Tiles {
    float a[64][16], b[16][256];
  };
  const auto tiles = std::make_unique_for_overwrite<Tiles>();
  auto& [a, b] = *tiles;
  const int columns = op.columns;
  for (uint32_t t = 0; op.a_in_registers && t < 128; ++t) {
    for (uint32_t i = 0; i < 8; ++i) {
      const uint32_t pair = op.a_registers[t][i / 2];
      const uint32_t row = t / 32 * 16 + t % 32 / 4 + (i / 2 & 1) * 8, k = t % 4 * 2 + (i / 4) * 8 + i % 2;
      a[row][k] = to_float(static_cast<uint16_t>(i % 2 ? pair >> 16 : pair), op.is_f16);
    }
  }
  for (uint32_t row = 0; !op.a_in_registers && row < 64; ++row) {
    for (uint32_t k = 0; k < 16; ++k) a[row][k] = operand(op, op.a, op.a_is_mn_major, row, k);
  }
  for (int c = 0; c < columns; ++c) {
    for (uint32_t k = 0; k < 16; ++k) b[k][c] = operand(op, op.b, op.b_is_mn_major, static_cast<uint32_t>(c), k);
  }
  std::vector<float>& d = op.accumulator->value;
  if (!op.accumulate) std::fill(d.begin(), d.end(), 0.0f);
  for (int row = 0; row < 64; ++row) {
    float* out = d.data() + row * columns;
    for (int k = 0; k < 16; ++k) {
      const float x = a[row][k];
      for (int c = 0; c < columns; ++c) out[c] += x * b[k][c];
    }
  }
}

struct WgmmaRecord {
  float* d;
  const uint32_t* a_registers;
  WgmmaOp op;
};

template <typename Tag>
WgmmaRecord make_record(float* d, const uint32_t* a_registers, int columns, bool a_is_mn_major, bool b_is_mn_major,
                        bool accumulate, const Loc& loc) {
  static_assert(std::is_same_v<Tag, bf16_tag> || std::is_same_v<Tag, f16_tag>);
  WgmmaRecord record{d, a_registers, {}};
  WgmmaOp& op = record.op;
  op.columns = columns;
  op.is_f16 = std::is_same_v<Tag, f16_tag>;
  op.a_is_mn_major = a_is_mn_major;
  op.b_is_mn_major = b_is_mn_major;
  op.accumulate = accumulate;
  op.a_in_registers = a_registers != nullptr;
  op.loc = loc;
  return record;
}

constexpr uint32_t kPoison = 0xFFBFFFFFu;  // a signalling NaN: arithmetic changes its bits

// Takes the accumulator out of the registers, which are NaN until the wait that gives it back.
inline Accumulator* take_accumulator(WarpgroupState& group, void* const* records, int columns, bool accumulate) {
  const auto registers = [records](int t) { return static_cast<WgmmaRecord*>(records[t])->d; };
  for (auto& acc : group.accumulators) {
    if (acc->registers[0] == registers(0)) return acc.get();
  }
  auto acc = std::make_unique<Accumulator>();
  acc->columns = columns;
  acc->value.resize(static_cast<size_t>(64 * columns));
  for (int t = 0; t < 128; ++t) acc->registers[t] = registers(t);
  for_each_register(*acc, [accumulate](float& in_register, float& value) {
    if (accumulate) value = in_register;
    in_register = __uint_as_float(kPoison);
  });
  group.accumulators.push_back(std::move(acc));
  return group.accumulators.back().get();
}

inline void give_back(Accumulator& acc, const Loc& loc) {
  for_each_register(acc, [&loc](float& in_register, float& value) {
    if (__float_as_uint(in_register) != kPoison) fail("accumulator written before the wait of its wgmma", loc);
    in_register = value;
  });
}

inline void issue_wgmma(WgmmaRecord record) {
  const auto run = [](void* const* records) {
    WarpgroupState& group = warpgroup();
    WgmmaOp op = static_cast<WgmmaRecord*>(records[0])->op;
    if (!group.fenced) fail("wgmma without wgmma_fence before it", op.loc);
    for (int t = 0; t < 128; ++t) {
      const auto& other = *static_cast<WgmmaRecord*>(records[t]);
      if (other.op.a != op.a || other.op.b != op.b || other.op.accumulate != op.accumulate) {
        fail("wgmma operands differ within the warpgroup", op.loc);
      }
      op.a_registers[t] = other.a_registers;
    }
    op.group = group.committed;
    op.accumulator = take_accumulator(group, records, op.columns, op.accumulate);
    ++op.accumulator->pending;
    group.ops.push_back(op);
    release(&state());
  };
  warpgroup_collective("wgmma", &record, run, record.op.loc);
}

struct WaitRecord {
  int pending_groups;
  Loc loc;
};

inline void finish_wgmma(int pending_groups, const Loc& loc) {
  WaitRecord record{pending_groups, loc};
  const auto run = [](void* const* records) {
    const auto& wait = *static_cast<WaitRecord*>(records[0]);
    WarpgroupState& group = warpgroup();
    auto op = group.ops.begin();
    for (; op != group.ops.end() && op->group < group.committed - wait.pending_groups; ++op) {
      execute(*op);
      --op->accumulator->pending;
    }
    group.ops.erase(group.ops.begin(), op);
    std::erase_if(group.accumulators, [&wait](const auto& acc) {
      if (acc->pending == 0) give_back(*acc, wait.loc);
      return acc->pending == 0;
    });
    group.fenced = false;
    release(&state());
  };
  warpgroup_collective("wgmma_wait", &record, run, loc);
}

inline void commit_wgmma(const Loc& loc) {
  warpgroup_collective("wgmma_commit", nullptr, [](void* const*) { ++warpgroup().committed; }, loc);
}

inline void fence_wgmma(const Loc& loc) {
  warpgroup_collective("wgmma_fence", nullptr, [](void* const*) { warpgroup().fenced = true; }, loc);
}

}  // namespace hopper
}  // namespace quire::simt
