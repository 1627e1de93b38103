// The nvcc side of hopper.h: PTX for sm_90a and the driver's tensor maps. Included by hopper.h alone.
#pragma once

#include <cuda.h>

#include "cuda/simt/tc.h"

namespace quire::simt {

// Whether the current device has what is in this file: compute capability 9.0, and no later one.
inline bool device_has_wgmma() { return device_attribute<cudaDevAttrComputeCapabilityMajor>() == 9; }

using TensorMap = CUtensorMap;

inline TensorMap make_tensor_map(const TensorMapSpec& spec) {
  check_tensor_map(spec);
  static const auto encode = [] {  // the driver's function through the runtime: nothing links libcuda
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  if (encode == nullptr) throw DeviceError("cuTensorMapEncodeTiled: not in this driver");
  const uint32_t element_strides[5] = {1, 1, 1, 1, 1};
  const auto type = spec.dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUtensorMapSwizzle swizzle = spec.swizzle == Swizzle::b128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : spec.swizzle == Swizzle::b64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                     : spec.swizzle == Swizzle::b32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                                                    : CU_TENSOR_MAP_SWIZZLE_NONE;
  TensorMap map;
  const CUresult result =
      encode(&map, type, static_cast<uint32_t>(spec.rank), const_cast<void*>(spec.base),
             reinterpret_cast<const cuuint64_t*>(spec.dims), reinterpret_cast<const cuuint64_t*>(spec.strides + 1),
             spec.box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) throw DeviceError(str_cat("cuTensorMapEncodeTiled: error ", static_cast<int>(result)));
  return map;
}

struct alignas(8) Mbarrier {
  uint64_t bits;
};

__device__ __forceinline__ void mbarrier_init(Mbarrier& barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void mbarrier_fence_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void mbarrier_arrive(Mbarrier& barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_expect_tx(Mbarrier& barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void mbarrier_wait(Mbarrier& barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(&barrier)), "r"(parity)
        : "memory");
  } while (done == 0);
}

__device__ __forceinline__ void prefetch_tensor_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

#define QUIRE_TMA_LOAD(DIMENSIONS, COORDINATES, ...)                                                                  \
  asm volatile("cp.async.bulk.tensor." DIMENSIONS                                                                     \
               ".shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {" COORDINATES "}], [%2];" ::"r"(to), \
               "l"(&map), "r"(bar), __VA_ARGS__                                                                       \
               : "memory")
template <int kRank>
__device__ __forceinline__ void tma_load(void* tile, const TensorMap& map, Mbarrier& barrier, const int (&at)[kRank]) {
  const uint32_t to = shared_address(tile), bar = shared_address(&barrier);
  if constexpr (kRank == 2) QUIRE_TMA_LOAD("2d", "%3,%4", "r"(at[0]), "r"(at[1]));
  if constexpr (kRank == 3) QUIRE_TMA_LOAD("3d", "%3,%4,%5", "r"(at[0]), "r"(at[1]), "r"(at[2]));
  if constexpr (kRank == 4) QUIRE_TMA_LOAD("4d", "%3,%4,%5,%6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
  if constexpr (kRank == 5) {
    QUIRE_TMA_LOAD("5d", "%3,%4,%5,%6,%7", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]));
  }
}
#undef QUIRE_TMA_LOAD

template <int kRegisters>
__device__ __forceinline__ void increase_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void decrease_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <Major kMajor, Swizzle kSwizzle = Swizzle::b128>
__device__ __forceinline__ uint64_t matrix_descriptor(const void* tile, uint32_t panel_bytes = 16) {
  return encode_descriptor<kSwizzle>(shared_address(tile), panel_bytes);
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

template <typename T, int kCount>
__device__ __forceinline__ void keep_registers(T (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (sizeof(T) == 4 && static_cast<T>(0.5f) == static_cast<T>(0)) {
      asm volatile("" : "+r"(registers[i])::"memory");
    } else {
      asm volatile("" : "+f"(registers[i])::"memory");
    }
  }
}

// wgmma: the instructions m64nNk16 for the N that kernels use. d has N / 2 registers, so the operands after it are
// numbered from N / 2 on.
// clang-format off
#define QUIRE_TEN(t) "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9,"
#define QUIRE_TO_29 QUIRE_TEN() QUIRE_TEN(1) QUIRE_TEN(2)
#define QUIRE_TO_59 QUIRE_TO_29 QUIRE_TEN(3) QUIRE_TEN(4) QUIRE_TEN(5)
#define QUIRE_TO_119 QUIRE_TO_59 QUIRE_TEN(6) QUIRE_TEN(7) QUIRE_TEN(8) QUIRE_TEN(9) QUIRE_TEN(10) QUIRE_TEN(11)
#define QUIRE_REGISTERS_32 QUIRE_TO_29 "%30,%31"
#define QUIRE_REGISTERS_40 QUIRE_TO_29 "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39"
#define QUIRE_REGISTERS_64 QUIRE_TO_59 "%60,%61,%62,%63"
#define QUIRE_REGISTERS_128 QUIRE_TO_119 "%120,%121,%122,%123,%124,%125,%126,%127"
// clang-format on
#define QUIRE_OUT_8(i)                                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define QUIRE_OUT_32(i) QUIRE_OUT_8(i), QUIRE_OUT_8(i + 8), QUIRE_OUT_8(i + 16), QUIRE_OUT_8(i + 24)
#define QUIRE_OUT_40(i) QUIRE_OUT_32(i), QUIRE_OUT_8(i + 32)
#define QUIRE_OUT_64(i) QUIRE_OUT_32(i), QUIRE_OUT_32(i + 32)
#define QUIRE_OUT_128(i) QUIRE_OUT_64(i), QUIRE_OUT_64(i + 64)

// o0 ... o6: the numbers of the operands after d. A from shared memory: a, b, accumulate, major of A, major of B.
// A from registers: a[0..3], b, accumulate, major of B.
#define QUIRE_WGMMA(TAG, TYPE, N, D, o0, o1, o2, o3, o4, o5, o6)                                                      \
  template <typename Tag, int kColumns, Major kBMajor = Major::k, Major kAMajor = Major::k>                           \
    requires(kColumns == N && std::is_same_v<Tag, TAG>)                                                               \
  __device__ __forceinline__ void wgmma(float (&d)[D], uint64_t a, uint64_t b, int accumulate) {                      \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" o2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE \
                 "." TYPE " {" QUIRE_REGISTERS_##D "}, %" o0 ", %" o1 ", p, 1, 1, %" o3 ", %" o4 ";\n}"               \
                 : QUIRE_OUT_##D(0)                                                                                   \
                 : "l"(a), "l"(b), "r"(accumulate), "n"(static_cast<int>(kAMajor)), "n"(static_cast<int>(kBMajor)));  \
  }                                                                                                                   \
  template <typename Tag, int kColumns, Major kBMajor = Major::k>                                                     \
    requires(kColumns == N && std::is_same_v<Tag, TAG>)                                                               \
  __device__ __forceinline__ void wgmma(float (&d)[D], const uint32_t (&a)[4], uint64_t b, int accumulate) {          \
    asm volatile(                                                                                                     \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %" o5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE \
        " {" QUIRE_REGISTERS_##D "}, {%" o0 ",%" o1 ",%" o2 ",%" o3 "}, %" o4 ", p, 1, 1, %" o6 ";\n}"                \
        : QUIRE_OUT_##D(0)                                                                                            \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(static_cast<int>(kBMajor)));       \
  }
#define QUIRE_WGMMA_TYPES(...)               \
  QUIRE_WGMMA(bf16_tag, "bf16", __VA_ARGS__) \
  QUIRE_WGMMA(f16_tag, "f16", __VA_ARGS__)

QUIRE_WGMMA_TYPES(64, 32, "32", "33", "34", "35", "36", "37", "38")
QUIRE_WGMMA_TYPES(80, 40, "40", "41", "42", "43", "44", "45", "46")
QUIRE_WGMMA_TYPES(128, 64, "64", "65", "66", "67", "68", "69", "70")
QUIRE_WGMMA_TYPES(256, 128, "128", "129", "130", "131", "132", "133", "134")

#undef QUIRE_WGMMA_TYPES
#undef QUIRE_WGMMA

}  // namespace quire::simt
