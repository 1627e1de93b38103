// The nvcc side of tc.h: PTX. Included by tc.h alone.
#pragma once

#include "cuda/simt/simt.h"

namespace quire::simt {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

#define QUIRE_SIMT_MMA(shape, types, constraint)                                                        \
  asm volatile("mma.sync.aligned." shape ".row.col." types                                              \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                       \
               : "+" constraint(d[0]), "+" constraint(d[1]), "+" constraint(d[2]), "+" constraint(d[3]) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
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

#define QUIRE_SIMT_LDMATRIX(shape, registers, address, ...)                                      \
  asm volatile("ldmatrix.sync.aligned.m8n8." shape ".shared.b16 {" registers "}, [" address "];" \
               : __VA_ARGS__                                                                     \
               : "r"(shared_address(row))                                                        \
               : "memory")
template <bool kTrans, int kCount>
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[kCount], const void* row) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  if constexpr (kCount == 1 && !kTrans) QUIRE_SIMT_LDMATRIX("x1", "%0", "%1", "=r"(r[0]));
  if constexpr (kCount == 1 && kTrans) QUIRE_SIMT_LDMATRIX("x1.trans", "%0", "%1", "=r"(r[0]));
  if constexpr (kCount == 2 && !kTrans) QUIRE_SIMT_LDMATRIX("x2", "%0, %1", "%2", "=r"(r[0]), "=r"(r[1]));
  if constexpr (kCount == 2 && kTrans) QUIRE_SIMT_LDMATRIX("x2.trans", "%0, %1", "%2", "=r"(r[0]), "=r"(r[1]));
  if constexpr (kCount == 4 && !kTrans) {
    QUIRE_SIMT_LDMATRIX("x4", "%0, %1, %2, %3", "%4", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]));
  }
  if constexpr (kCount == 4 && kTrans) {
    QUIRE_SIMT_LDMATRIX("x4.trans", "%0, %1, %2, %3", "%4", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]));
  }
}
#undef QUIRE_SIMT_LDMATRIX

// Before sm_90 by shuffles.
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

__device__ __forceinline__ void cp_async16(void* to, const void* from, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}

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
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace quire::simt
