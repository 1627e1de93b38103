// Tensor-core, ldmatrix and cp.async primitives: inline PTX under nvcc, warp collectives in the emulation.
//
// Fragments are as the PTX manual lays them out; lane = 4 * group + member. For m16n8k16 (16-bit elements, two a
// register): a[i] holds rows group + 8 * (i & 1), columns 2 * member + 8 * (i >> 1) and the next; b[i] holds column
// group, rows 2 * member + 8 * i and the next; d[i] holds row group + 8 * (i >> 1), column 2 * member + (i & 1).
// m16n8k32 (8-bit elements, four a register) has 4 * member and 16 in place of 2 * member and 8 along k.
// The emulation adds along k in ascending order in float; the hardware's order and rounding are its own.
#pragma once

#include "cuda/simt/simt.h"

namespace quire::simt {

struct bf16_tag {};
struct f16_tag {};
struct e4m3_tag {};
struct s8_tag {};

#if defined(__CUDACC__)

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

#define QUIRE_SIMT_MMA(shape, types, constraint)                                                        \
  asm volatile("mma.sync.aligned." shape ".row.col." types                                              \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                       \
               : "+" constraint(d[0]), "+" constraint(d[1]), "+" constraint(d[2]), "+" constraint(d[3]) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
// d += a * b
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16_tag) {
  QUIRE_SIMT_MMA("m16n8k16", "f32.bf16.bf16.f32", "f");
}
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16_tag) {
  QUIRE_SIMT_MMA("m16n8k16", "f32.f16.f16.f32", "f");
}
__device__ __forceinline__ void mma_m16n8k32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], e4m3_tag) {
#if __CUDA_ARCH__ >= 890
  QUIRE_SIMT_MMA("m16n8k32", "f32.e4m3.e4m3.f32", "f");
#else
  __trap();  // no such instruction; launchers refuse before
#endif
}
__device__ __forceinline__ void mma_m16n8k32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], s8_tag) {
  QUIRE_SIMT_MMA("m16n8k32", "s32.s8.s8.s32", "r");
}
#undef QUIRE_SIMT_MMA

// Loads 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8 (lanes beyond the last
// matrix are not looked at). Register i of a lane: matrix i, row group, columns 2 * member and the next; transposed:
// rows and columns swapped.
template <bool Trans>
__device__ __forceinline__ void ldmatrix_x1(uint32_t (&r)[1], const void* row) {
  if constexpr (Trans) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(shared_address(row))
                 : "memory");
  }
}
template <bool Trans>
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  if constexpr (Trans) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
  }
}
template <bool Trans>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  if constexpr (Trans) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
}

// The opposite of ldmatrix_x4<false>. Before sm_90 by shuffles.
__device__ __forceinline__ void stmatrix_x4(void* row, const uint32_t (&r)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#else
  const uint32_t own = shared_address(row);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t target = __shfl_sync(~0u, own, i * 8 + lane / 4) + static_cast<uint32_t>(lane % 4 * 4);
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(target), "r"(r[i]) : "memory");
  }
#endif
}

// 16 bytes from global to shared memory, there after the wait for their group; zeros where !valid, and then `from` is
// not read.
__device__ __forceinline__ void cp_async16(void* to, const void* from, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
// For bytes that are read once: first to leave the second-level cache.
using CachePolicy = uint64_t;
__device__ __forceinline__ CachePolicy evict_first_policy() {
  CachePolicy policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ void cp_async16_hinted(void* to, const void* from, CachePolicy policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
               "l"(from), "l"(policy)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but the N newest groups of this thread have landed; other threads see them after a barrier.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#else

// Registers to matrices and back; K elements along k, 16 or 32.
template <typename Acc>
struct MmaRecord {
  Acc* d;
  const uint32_t* a;
  const uint32_t* b;
};

template <typename Tag>
inline auto decode(uint32_t word, int i, Tag) {
  if constexpr (std::is_same_v<Tag, bf16_tag>) return __uint_as_float(word >> 16 * i << 16);
  if constexpr (std::is_same_v<Tag, f16_tag>) return float{__ushort_as_half(static_cast<uint16_t>(word >> 16 * i))};
  if constexpr (std::is_same_v<Tag, s8_tag>) return static_cast<int32_t>(static_cast<int8_t>(word >> 8 * i));
  if constexpr (std::is_same_v<Tag, e4m3_tag>) {
    const uint32_t bits = word >> 8 * i & 0xff, magnitude = bits & 0x7f;
    const float value = magnitude == 0x7f ? NAN : __uint_as_float(magnitude << 20) * 0x1p120f;
    return bits & 0x80 ? -value : value;
  }
}

template <int K, typename Tag, typename Acc>
void run_mma(void* const* records) {
  constexpr int kPack = K / 8;  // elements a register
  Acc a[16][K], b[K][8], d[16][8];
  for (int lane = 0; lane < 32; lane++) {
    const auto& r = *static_cast<const MmaRecord<Acc>*>(records[lane]);
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
    const auto& r = *static_cast<const MmaRecord<Acc>*>(records[lane]);
    for (int i = 0; i < 4; i++) r.d[i] = d[lane / 4 + (i >> 1) * 8][lane % 4 * 2 + (i & 1)];
  }
}

// g++ asks for always_inline functions to be seen before use; plain templates serve as well here.
template <typename Tag>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Tag, Loc loc = Loc::current()) {
  static_assert(std::is_same_v<Tag, bf16_tag> || std::is_same_v<Tag, f16_tag>);
  MmaRecord<float> record{d, a, b};
  warp_collective(~0u, "mma_m16n8k16", &record, &run_mma<16, Tag, float>, loc);
}
inline void mma_m16n8k32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], e4m3_tag,
                         Loc loc = Loc::current()) {
  MmaRecord<float> record{d, a, b};
  warp_collective(~0u, "mma_m16n8k32", &record, &run_mma<32, e4m3_tag, float>, loc);
}
inline void mma_m16n8k32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], s8_tag,
                         Loc loc = Loc::current()) {
  MmaRecord<int32_t> record{d, a, b};
  warp_collective(~0u, "mma_m16n8k32", &record, &run_mma<32, s8_tag, int32_t>, loc);
}

struct MatrixRecord {
  uint32_t* registers;
  uint16_t row[8];
};

template <bool Trans, int N>
void load_matrices(uint32_t (&r)[N], const void* row, const char* name, Loc loc) {
  MatrixRecord record{r, {}};
  if (thread_index() % 32 < N * 8) {  // each lane reads its own row, so that a sanitizer blames the right one
    check_shared(row, 16, 16, name, loc);
    for (int i = 0; i < 8; i++) record.row[i] = static_cast<const uint16_t*>(row)[i];
  }
  warp_collective(
      ~0u, name, &record,
      [](void* const* records) {
        const auto at = [&](int matrix, int i, int j) {
          return uint32_t{static_cast<const MatrixRecord*>(records[matrix * 8 + (Trans ? j : i)])->row[Trans ? i : j]};
        };
        for (int lane = 0; lane < 32; lane++) {
          for (int i = 0; i < N; i++) {
            static_cast<MatrixRecord*>(records[lane])->registers[i] =
                at(i, lane / 4, lane % 4 * 2) | at(i, lane / 4, lane % 4 * 2 + 1) << 16;
          }
        }
      },
      loc);
}
template <bool Trans>
void ldmatrix_x1(uint32_t (&r)[1], const void* row, Loc loc = Loc::current()) {
  load_matrices<Trans>(r, row, "ldmatrix_x1", loc);
}
template <bool Trans>
void ldmatrix_x2(uint32_t (&r)[2], const void* row, Loc loc = Loc::current()) {
  load_matrices<Trans>(r, row, "ldmatrix_x2", loc);
}
template <bool Trans>
void ldmatrix_x4(uint32_t (&r)[4], const void* row, Loc loc = Loc::current()) {
  load_matrices<Trans>(r, row, "ldmatrix_x4", loc);
}

inline void stmatrix_x4(void* row, const uint32_t (&r)[4], Loc loc = Loc::current()) {
  check_shared(row, 16, 16, "stmatrix_x4", loc);
  uint32_t registers[4] = {r[0], r[1], r[2], r[3]};
  MatrixRecord record{registers, {}};
  warp_collective(
      ~0u, "stmatrix_x4", &record,
      [](void* const* records) {
        for (int lane = 0; lane < 32; lane++) {
          auto& own = *static_cast<MatrixRecord*>(records[lane]);
          for (int j = 0; j < 8; j++) {
            const auto& other = *static_cast<const MatrixRecord*>(records[lane % 8 * 4 + j / 2]);
            own.row[j] = static_cast<uint16_t>(other.registers[lane / 8] >> 16 * (j & 1));
          }
        }
      },
      loc);
  for (int i = 0; i < 8; i++) static_cast<uint16_t*>(row)[i] = record.row[i];
}

// Plain 8-byte stores, because sanitizers see every one of them and overlook a short memcpy.
inline void store16(void* to, uint64_t low, uint64_t high) {
  using Word [[gnu::may_alias]] = uint64_t;
  static_cast<Word*>(to)[0] = low;
  static_cast<Word*>(to)[1] = high;
}

// The bytes land at the wait; until then the target is NaN.
inline void cp_async16(void* to, const void* from, bool valid = true, Loc loc = Loc::current()) {
  check_shared(to, 16, 16, "cp_async16", loc);
  check_aligned(from, 16, "cp_async16", loc);
  store16(to, ~uint64_t{0}, ~uint64_t{0});
  if (valid) {  // read here too, so that a sanitizer names this line if the address is wrong
    static_cast<void>(static_cast<const volatile uint64_t*>(from)[0]);
    static_cast<void>(static_cast<const volatile uint64_t*>(from)[1]);
  }
  issue_copy(to, valid ? from : nullptr);
}
using CachePolicy = uint64_t;
inline CachePolicy evict_first_policy() { return 0; }
inline void cp_async16_hinted(void* to, const void* from, CachePolicy, Loc loc = Loc::current()) {
  cp_async16(to, from, true, loc);
}
inline void cp_async_commit() { commit_copies(); }
template <int N>
void cp_async_wait() {
  AsyncCopy copy;
  while (take_copy(N, &copy)) {
    using Word [[gnu::may_alias]] = const uint64_t;
    const auto* const from = static_cast<Word*>(copy.from);
    store16(copy.to, from ? from[0] : 0, from ? from[1] : 0);
  }
}

#endif

}  // namespace quire::simt
