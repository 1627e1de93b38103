// The emulation's side of tc.h. Included by tc.h alone.
#pragma once

#include "cuda/simt/simt.h"

namespace quire::simt {

// Element i of a register.
inline float decode(uint32_t word, int i, bf16_tag) { return __uint_as_float(word >> 16 * i << 16); }
inline float decode(uint32_t word, int i, f16_tag) { return f16_to_float(static_cast<uint16_t>(word >> 16 * i)); }
inline int32_t decode(uint32_t word, int i, s8_tag) { return static_cast<int8_t>(word >> 8 * i); }
inline float decode(uint32_t word, int i, e4m3_tag) {
  const uint32_t bits = word >> 8 * i & 0xff, magnitude = bits & 0x7f;
  const float value = magnitude == 0x7f ? NAN : __uint_as_float(magnitude << 20) * 0x1p120f;
  return bits & 0x80 ? -value : value;
}

// Registers to matrices and back; K elements along k, 16 or 32.
template <int K, typename Tag, typename Acc>
void mma(Acc (&registers)[4], const uint32_t (&a_registers)[4], const uint32_t (&b_registers)[2], const char* name,
         Loc loc) {
  struct Record {
    Acc* d;
    const uint32_t *a, *b;
  } record{registers, a_registers, b_registers};
  collective(~0u, name, &record, loc, [](Records<Record> records) {
    constexpr int kPack = K / 8;  // elements a register
    Acc a[16][K], b[K][8], d[16][8];
    for (int lane = 0; lane < 32; lane++) {
      const Record& r = *records[static_cast<size_t>(lane)];
      const int group = lane / 4, member = lane % 4;
      for (int e = 0; e < kPack; e++) {
        for (int i = 0; i < 4; i++) {
          a[group + (i & 1) * 8][member * kPack + (i >> 1) * (K / 2) + e] = decode(r.a[i], e, Tag());
        }
        for (int i = 0; i < 2; i++) b[member * kPack + i * (K / 2) + e][group] = decode(r.b[i], e, Tag());
      }
      for (int i = 0; i < 4; i++) d[group + (i >> 1) * 8][member * 2 + (i & 1)] = r.d[i];
    }
    for (int m = 0; m < 16; m++) {
      for (int k = 0; k < K; k++) {
        for (int n = 0; n < 8; n++) d[m][n] += a[m][k] * b[k][n];
      }
    }
    for (int lane = 0; lane < 32; lane++) {
      Acc* const out = records[static_cast<size_t>(lane)]->d;
      for (int i = 0; i < 4; i++) out[i] = d[lane / 4 + (i >> 1) * 8][lane % 4 * 2 + (i & 1)];
    }
  });
}

// g++ asks for always_inline functions to be seen before use; plain templates serve as well here.
template <typename Tag>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Tag, Loc loc = Loc::current()) {
  static_assert(std::is_same_v<Tag, bf16_tag> || std::is_same_v<Tag, f16_tag>);
  mma<16, Tag>(d, a, b, "mma_m16n8k16", loc);
}
template <typename Tag>
void mma_m16n8k32(decltype(decode(0, 0, Tag())) (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Tag,
                  Loc loc = Loc::current()) {
  static_assert(std::is_same_v<Tag, e4m3_tag> || std::is_same_v<Tag, s8_tag>);
  mma<32, Tag>(d, a, b, "mma_m16n8k32", loc);
}

struct MatrixRecord {
  uint32_t* registers;
  uint16_t row[8];
};

template <bool kTrans, size_t kCount>
void ldmatrix(uint32_t (&r)[kCount], const void* row, Loc loc = Loc::current()) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  MatrixRecord record{r, {}};
  if (thread_index() % 32 < kCount * 8) {  // each lane reads its own row, so that a sanitizer blames the right one
    check_shared(row, 16, 16, "ldmatrix", loc);
    std::copy_n(static_cast<const uint16_t*>(row), 8, record.row);
  }
  collective(~0u, "ldmatrix", &record, loc, [](Records<MatrixRecord> records) {
    const auto at = [&](size_t matrix, size_t i, size_t j) -> uint32_t {
      return kTrans ? records[matrix * 8 + j]->row[i] : records[matrix * 8 + i]->row[j];
    };
    for (size_t lane = 0; lane < 32; lane++) {
      const size_t group = lane / 4, column = lane % 4 * 2;
      for (size_t i = 0; i < kCount; i++) {
        records[lane]->registers[i] = at(i, group, column) | at(i, group, column + 1) << 16;
      }
    }
  });
}

inline void stmatrix_x4(void* row, const uint32_t (&r)[4], Loc loc = Loc::current()) {
  check_shared(row, 16, 16, "stmatrix_x4", loc);
  uint32_t registers[4] = {r[0], r[1], r[2], r[3]};
  MatrixRecord record{registers, {}};
  collective(~0u, "stmatrix_x4", &record, loc, [](Records<MatrixRecord> records) {
    for (size_t lane = 0; lane < 32; lane++) {
      for (size_t j = 0; j < 8; j++) {
        const uint32_t pair = records[lane % 8 * 4 + j / 2]->registers[lane / 8];
        records[lane]->row[j] = static_cast<uint16_t>(pair >> 16 * (j & 1));
      }
    }
  });
  std::copy_n(record.row, 8, static_cast<uint16_t*>(row));
}

// Plain 8-byte accesses, because sanitizers see every one of them and overlook a short memcpy.
using Word [[gnu::may_alias]] = uint64_t;

// The bytes land at the wait; until then the target is NaN.
inline void cp_async16(void* to, const void* from, bool valid = true, Loc loc = Loc::current()) {
  check_shared(to, 16, 16, "cp_async16", loc);
  check_aligned(from, 16, "cp_async16", loc);
  for (int i = 0; i < 2; i++) {
    static_cast<Word*>(to)[i] = ~uint64_t{0};
    // Read here too, so that a sanitizer names this line if the address is wrong.
    if (valid) static_cast<void>(static_cast<const volatile Word*>(from)[i]);
  }
  late_copies().add([to, from = valid ? from : nullptr] {
    for (int i = 0; i < 2; i++) static_cast<Word*>(to)[i] = from ? static_cast<const Word*>(from)[i] : 0;
  });
}
inline CachePolicy evict_first_policy() { return 0; }
inline void cp_async16_hinted(void* to, const void* from, CachePolicy, Loc loc = Loc::current()) {
  cp_async16(to, from, true, loc);
}
inline void cp_async_commit() { late_copies().commit(); }
template <int N>
void cp_async_wait() {
  late_copies().wait(N);
}

}  // namespace quire::simt
