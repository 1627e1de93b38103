// What hopper.h's instructions do on a CPU. Everything asynchronous is as late as it may be: a TMA copy lands when no
// thread of the block can run, a wgmma at its wait; until then destinations hold NaN. Included by hopper.h alone.
// Called by kernel threads only (fibers of one OS thread); state is thread_local and dies with its block.
#pragma once

#include <algorithm>
#include <array>
#include <list>
#include <memory>
#include <vector>

#include "cuda/simt/tc.h"

namespace quire::simt {

inline bool device_has_wgmma() { return true; }

// A specification that was checked.
struct alignas(64) TensorMap {
  TensorMapSpec spec;
};
inline TensorMap make_tensor_map(const TensorMapSpec& spec) {
  check_tensor_map(spec);
  return {spec};
}
inline void prefetch_tensor_map(const TensorMap&) {}

// Where a byte of a tile lies: 16-byte pieces of each 128-byte line change places with the line's number.
inline uint32_t swizzled(uint32_t address, Swizzle swizzle) {
  const uint32_t mask = static_cast<uint32_t>(swizzle) / 16 - 1;
  return address ^ (((address >> 7) & mask) << 4);
}

inline uint32_t shared_offset(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - shared_memory());
}

// Shared memory starts as 0xFF: a count of 65535 was never initialised.
struct alignas(8) Mbarrier {
  uint16_t count, pending;
  int32_t tx : 31;
  uint32_t phase : 1;
};
static_assert(sizeof(Mbarrier) == 8);

inline void mbarrier_init(Mbarrier& barrier, uint32_t arrivals, Loc loc = Loc::current()) {
  check_shared(&barrier, 8, 8, "mbarrier_init", loc);
  if (arrivals < 1 || arrivals > 1024) fail("mbarrier of more arrivals than a block has threads", loc);
  const auto count = static_cast<uint16_t>(arrivals);
  barrier = {count, count, 0, 0};
}
inline void mbarrier_fence_init() {}
inline void fence_proxy_async() {}

inline void check_mbarrier(const Mbarrier& barrier, Loc loc) {
  check_shared(&barrier, 8, 8, "mbarrier", loc);
  if (barrier.count == 0xFFFF) fail("mbarrier used before mbarrier_init", loc);
}

inline void end_phase_if_complete(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.tx != 0) return;
  barrier.pending = barrier.count;
  barrier.phase ^= 1;
  wake(&barrier);
}

inline void mbarrier_arrive_expect_tx(Mbarrier& barrier, uint32_t bytes, Loc loc = Loc::current()) {
  release(&barrier);
  const Quiet quiet;
  check_mbarrier(barrier, loc);
  if (barrier.pending == 0) fail("mbarrier: too many arrivals", loc);
  --barrier.pending;
  barrier.tx = barrier.tx + static_cast<int32_t>(bytes);
  end_phase_if_complete(barrier);
}
inline void mbarrier_arrive(Mbarrier& barrier, Loc loc = Loc::current()) { mbarrier_arrive_expect_tx(barrier, 0, loc); }

inline void mbarrier_wait(Mbarrier& barrier, uint32_t parity, Loc loc = Loc::current()) {
  const auto is_complete = [&] {
    const Quiet quiet;
    check_mbarrier(barrier, loc);
    return barrier.phase != (parity & 1);
  };
  while (!is_complete()) wait_for(&barrier, "mbarrier_wait", loc);
  acquire(&barrier);
}

constexpr uint32_t kElementBytes = 2;  // of all types that a tensor map may have

inline uint32_t box_bytes(const TensorMapSpec& spec) {
  uint32_t bytes = kElementBytes;
  for (int i = 0; i < spec.rank; ++i) bytes *= spec.box[i];
  return bytes;
}

inline void land_box(unsigned char* tile, const TensorMapSpec& spec, const std::array<int, 5>& at) {
  const uint32_t start = shared_offset(tile), line_bytes = spec.box[0] * kElementBytes;
  for (uint32_t line = 0; line < box_bytes(spec) / line_bytes; ++line) {
    const auto* global = static_cast<const unsigned char*>(spec.base);
    bool is_inside = true;
    uint32_t rest = line;
    for (size_t i = 1; i < static_cast<size_t>(spec.rank); ++i) {
      const int64_t x = int64_t{at[i]} + rest % spec.box[i];
      rest /= spec.box[i];
      is_inside = is_inside && x >= 0 && static_cast<uint64_t>(x) < spec.dims[i];
      if (is_inside) global += static_cast<uint64_t>(x) * spec.strides[i];
    }
    for (uint32_t i = 0; i < spec.box[0]; ++i) {
      const int64_t x = int64_t{at[0]} + i;
      unsigned char* to = shared_memory() + swizzled(start + line * line_bytes + i * kElementBytes, spec.swizzle);
      if (is_inside && x >= 0 && static_cast<uint64_t>(x) < spec.dims[0]) {
        std::memcpy(to, global + static_cast<uint64_t>(x) * kElementBytes, kElementBytes);
      } else {
        std::memset(to, 0, kElementBytes);
      }
    }
  }
}

template <int kRank>
void tma_load(void* tile, const TensorMap& map, Mbarrier& barrier, const int (&at)[kRank], Loc loc = Loc::current()) {
  const uint32_t bytes = box_bytes(map.spec);
  const bool is_swizzled = map.spec.swizzle != Swizzle::none;
  check_shared(tile, bytes, is_swizzled ? static_cast<uint32_t>(map.spec.swizzle) * 8 : 128, "TMA tile", loc);
  if (kRank != map.spec.rank) fail("TMA coordinates are not of the tensor map's rank", loc);
  check_mbarrier(barrier, loc);
  std::fill_n(static_cast<Word*>(tile), bytes / 8, ~uint64_t{0});
  release(&barrier);  // whoever waits for the bytes comes after these writes
  const Quiet quiet;
  std::array<int, 5> corner{};
  std::copy_n(at, kRank, corner.begin());
  defer([tile, spec = map.spec, &barrier, corner, bytes] {
    land_box(static_cast<unsigned char*>(tile), spec, corner);
    barrier.tx = barrier.tx - static_cast<int32_t>(bytes);
    end_phase_if_complete(barrier);
  });
}

template <int kRegisters>
void increase_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}
template <int kRegisters>
void decrease_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}

template <Major kMajor, Swizzle kSwizzle = Swizzle::b128>
uint64_t matrix_descriptor(const void* tile, uint32_t panel_bytes = 16, Loc loc = Loc::current()) {
  check_shared(tile, 1, static_cast<uint32_t>(kSwizzle) * 8, "wgmma tile", loc);
  return encode_descriptor<kSwizzle>(shared_offset(tile), panel_bytes);
}

// Element (row along M or N, k) of an operand in shared memory, by the canonical layouts of the descriptor.
template <typename Tag, Major kMajor>
float operand(uint64_t descriptor, uint32_t row, uint32_t k, Loc loc) {
  constexpr Swizzle kSwizzles[4] = {Swizzle::none, Swizzle::b128, Swizzle::b64, Swizzle::b32};
  const auto span = static_cast<uint32_t>(kSwizzles[descriptor >> 62]);
  const auto panel_bytes = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
  const auto atom_bytes = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  const uint32_t inside =
      kMajor == Major::k ? row % 8 * span + row / 8 * atom_bytes + k * 2
                         : row % (span / 2) * 2 + row / (span / 2) * panel_bytes + k % 8 * span + k / 8 * atom_bytes;
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const uint32_t address = swizzled(start + inside, kSwizzles[descriptor >> 62]);
  if (address + 2 > shared_memory_bytes()) fail("wgmma operand outside of shared memory", loc);
  uint16_t bits;
  std::memcpy(&bits, shared_memory() + address, 2);
  return decode(bits, 0, Tag());
}

// The matrix that the registers of a warpgroup stand for while a wgmma that adds to it is under way.
struct Accumulator {
  float* registers[128];
  int columns;
  std::vector<float> value;  // [64][columns]
  int pending = 0;           // instructions issued and not yet executed

  // f(register, element of the matrix): the accumulator fragment of m64nNk16.
  template <typename F>
  void for_each_register(F&& f) {
    for (int t = 0; t < 128; ++t) {
      for (int i = 0; i < columns / 2; ++i) {
        const int row = t / 32 * 16 + t % 32 / 4 + (i >> 1 & 1) * 8, column = (i >> 2) * 8 + t % 4 * 2 + (i & 1);
        f(registers[t][i], value[static_cast<size_t>(row * columns + column)]);
      }
    }
  }
};

struct Warpgroup {
  uint64_t block = 0;
  LateWork late;
  std::list<Accumulator> accumulators;
  bool is_fenced = false;
};

// Of the running block; its memory passes from fiber to fiber.
inline Warpgroup& warpgroup() {
  thread_local Warpgroup groups[8];
  Warpgroup& group = groups[thread_index() / 128];
  acquire(&group);
  if (group.block != block_serial()) {
    group = {};
    group.block = block_serial();
  }
  return group;
}

// Runs run(warpgroup, records) once for all threads.
template <typename Record, typename Run>
void warpgroup_collective(const char* name, Record* record, Loc loc, const Run& run) {
  collective<4>(~0u, name, record, loc, [&](Records<Record> records) {
    Warpgroup& group = warpgroup();
    run(group, records);
    release(&group);
  });
}
template <typename Run>
void warpgroup_collective(const char* name, Loc loc, const Run& run) {
  warpgroup_collective<char>(name, nullptr, loc, [&run](Warpgroup& group, Records<char>) { run(group); });
}

inline void wgmma_fence(Loc loc = Loc::current()) {
  warpgroup_collective("wgmma_fence", loc, [](Warpgroup& group) { group.is_fenced = true; });
}
inline void wgmma_commit(Loc loc = Loc::current()) {
  warpgroup_collective("wgmma_commit", loc, [](Warpgroup& group) { group.late.commit(); });
}

constexpr uint32_t kPoison = 0xFFBFFFFFu;  // a signalling NaN: arithmetic changes its bits

template <int kPending>
void wgmma_wait(Loc loc = Loc::current()) {
  warpgroup_collective("wgmma_wait", loc, [loc](Warpgroup& group) {
    group.late.wait(kPending);
    group.accumulators.remove_if([loc](Accumulator& accumulator) {
      if (accumulator.pending != 0) return false;
      accumulator.for_each_register([loc](float& in_register, float value) {
        if (__float_as_uint(in_register) != kPoison) fail("accumulator written before the wait of its wgmma", loc);
        in_register = value;
      });
      return true;
    });
    group.is_fenced = false;
  });
}

template <typename T, int kCount>
void keep_registers(T (&)[kCount]) {}

struct WgmmaRecord {
  float* d;
  const uint32_t* a_registers;  // null: A is in shared memory
  uint64_t a, b;
  bool accumulate;
};

// The accumulator of these registers, which are NaN from the first wgmma to the wait that gives it back.
inline Accumulator& take_accumulator(Warpgroup& group, Records<WgmmaRecord> records, int columns) {
  const auto first_register = [](const Accumulator& accumulator) { return accumulator.registers[0]; };
  const auto known = std::ranges::find(group.accumulators, records[0]->d, first_register);
  if (known != group.accumulators.end()) return *known;
  Accumulator& accumulator = group.accumulators.emplace_back();
  accumulator.columns = columns;
  accumulator.value.resize(static_cast<size_t>(64 * columns));
  for (size_t t = 0; t < 128; ++t) accumulator.registers[t] = records[t]->d;
  accumulator.for_each_register([&](float& in_register, float& value) {
    if (records[0]->accumulate) value = in_register;
    in_register = __uint_as_float(kPoison);
  });
  return accumulator;
}

template <typename Tag, int kColumns, Major kAMajor, Major kBMajor>
void execute_wgmma(const WgmmaRecord& op, const std::array<const uint32_t*, 128>& a_registers, float* d, Loc loc) {
  struct Tiles {
    float a[64][16], b[16][kColumns];
  };
  const auto tiles = std::make_unique_for_overwrite<Tiles>();  // plugins get few bytes of static TLS
  auto& [a, b] = *tiles;
  for (uint32_t t = 0; op.a_registers && t < 128; ++t) {
    for (uint32_t i = 0; i < 8; ++i) {
      const uint32_t row = t / 32 * 16 + t % 32 / 4 + (i / 2 & 1) * 8, k = t % 4 * 2 + i / 4 * 8 + i % 2;
      a[row][k] = decode(a_registers[t][i / 2], static_cast<int>(i % 2), Tag());
    }
  }
  for (uint32_t k = 0; k < 16; ++k) {
    for (uint32_t row = 0; !op.a_registers && row < 64; ++row) a[row][k] = operand<Tag, kAMajor>(op.a, row, k, loc);
    for (uint32_t c = 0; c < kColumns; ++c) b[k][c] = operand<Tag, kBMajor>(op.b, c, k, loc);
  }
  if (!op.accumulate) std::fill_n(d, 64 * kColumns, 0.0f);
  for (int row = 0; row < 64; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int c = 0; c < kColumns; ++c) d[row * kColumns + c] += a[row][k] * b[k][c];
    }
  }
}

template <typename Tag, int kColumns, Major kAMajor, Major kBMajor>
void issue_wgmma(WgmmaRecord record, Loc loc) {
  static_assert(std::is_same_v<Tag, bf16_tag> || std::is_same_v<Tag, f16_tag>);
  static_assert(kColumns == 64 || kColumns == 80 || kColumns == 128 || kColumns == 256);  // what hopper_ptx.h has
  warpgroup_collective("wgmma", &record, loc, [loc](Warpgroup& group, Records<WgmmaRecord> records) {
    if (!group.is_fenced) fail("wgmma without wgmma_fence before it", loc);
    const WgmmaRecord op = *records[0];
    std::array<const uint32_t*, 128> a_registers;
    for (size_t t = 0; t < 128; ++t) {
      if (records[t]->a != op.a || records[t]->b != op.b || records[t]->accumulate != op.accumulate) {
        fail("wgmma operands differ within the warpgroup", loc);
      }
      a_registers[t] = records[t]->a_registers;
    }
    Accumulator& accumulator = take_accumulator(group, records, kColumns);
    ++accumulator.pending;
    group.late.add([op, a_registers, &accumulator, loc] {
      execute_wgmma<Tag, kColumns, kAMajor, kBMajor>(op, a_registers, accumulator.value.data(), loc);
      --accumulator.pending;
    });
  });
}

template <typename Tag, int kColumns, Major kBMajor = Major::k, Major kAMajor = Major::k>
void wgmma(float (&d)[kColumns / 2], uint64_t a, uint64_t b, bool accumulate, Loc loc = Loc::current()) {
  issue_wgmma<Tag, kColumns, kAMajor, kBMajor>({d, nullptr, a, b, accumulate}, loc);
}
template <typename Tag, int kColumns, Major kBMajor = Major::k>
void wgmma(float (&d)[kColumns / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate, Loc loc = Loc::current()) {
  issue_wgmma<Tag, kColumns, Major::k, kBMajor>({d, a, 0, b, accumulate}, loc);
}

}  // namespace quire::simt
