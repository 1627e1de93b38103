// Hopper's asynchronous instructions, one function each: mbarrier, TMA tile copies, wgmma, setmaxnreg. Under nvcc for
// sm_90a they are PTX, elsewhere the emulation of hopper_emulation.h, late on purpose.
//
// What orders what (PTX ISA 8.0 and later, memory consistency of the async proxy):
//   TMA writes -> readers          the mbarrier that the copy names: arrive_expect_tx before, wait after
//   readers -> next TMA write      an "empty" mbarrier the readers arrive on
//   plain writes -> TMA, wgmma     fence_proxy_async by the writer, then a barrier
//   register writes -> wgmma       wgmma_fence; registers belong to the instruction until wgmma_wait
#pragma once

#include <cstdint>

#include "base/check.h"
#include "base/dtype.h"
#include "cuda/simt/simt.h"
#include "cuda/simt/tc.h"
#ifdef __CUDACC__
#include <cuda.h>

#include "cuda/simt/hopper_ptx.h"
#else
#include "cuda/simt/hopper_emulation.h"
#endif

namespace quire::simt {

#ifdef __CUDACC__
using TensorMap = CUtensorMap;
#endif

// How 16-byte pieces of a tile are spread over banks; a tile's line is as many bytes.
enum class Swizzle : uint32_t { none = 16, b32 = 32, b64 = 64, b128 = 128 };

// A tensor in global memory and the box one copy moves, fastest dimension first. strides[i] is the distance in bytes
// between elements of dimension i, i >= 1; elements of dimension 0 are adjacent.
struct TensorMapSpec {
  const void* base = nullptr;
  DType dtype = DType::bf16;
  int rank = 2;
  uint64_t dims[5] = {1, 1, 1, 1, 1};
  uint64_t strides[5] = {};
  uint32_t box[5] = {1, 1, 1, 1, 1};
  Swizzle swizzle = Swizzle::b128;
};

// What cuTensorMapEncodeTiled asks for; said by name instead of CUDA_ERROR_INVALID_VALUE.
inline void check_tensor_map(const TensorMapSpec& spec) {
  const uint64_t line_bytes = spec.box[0] * dtype_bytes(spec.dtype);
  QUIRE_CHECK(spec.rank >= 1 && spec.rank <= 5, "rank ", spec.rank);
  QUIRE_CHECK(reinterpret_cast<uintptr_t>(spec.base) % 16 == 0, "tensor map base is not 16-byte aligned");
  QUIRE_CHECK(line_bytes % 16 == 0, "tensor map box line of ", line_bytes, " bytes");
  QUIRE_CHECK(spec.swizzle == Swizzle::none || line_bytes == static_cast<uint32_t>(spec.swizzle), "box line of ",
              line_bytes, " bytes, swizzle of ", static_cast<uint32_t>(spec.swizzle));
  for (int i = 0; i < spec.rank; ++i) {
    QUIRE_CHECK(spec.dims[i] >= 1 && spec.dims[i] <= uint64_t{1} << 32, "tensor map dim ", i, ": ", spec.dims[i]);
    QUIRE_CHECK(spec.box[i] >= 1 && spec.box[i] <= 256, "tensor map box ", i, ": ", spec.box[i]);
    if (i == 0) continue;
    QUIRE_CHECK(spec.strides[i] % 16 == 0 && spec.strides[i] < uint64_t{1} << 40, "tensor map stride ", i, ": ",
                spec.strides[i]);
  }
}

// Whether the current device has what is in this file: compute capability 9.0, and no later one.
#ifdef __CUDACC__
inline bool device_has_wgmma() {
  int device = 0, major = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  return major == 9;
}
#else
inline bool device_has_wgmma() { return true; }
#endif

#ifdef __CUDACC__
inline CUtensorMapDataType tensor_map_type(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::f16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case DType::f32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case DType::u8:
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    default:
      throw NotSupported("a tensor map of this element type");
  }
}

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
  const CUtensorMapSwizzle swizzle = spec.swizzle == Swizzle::b128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : spec.swizzle == Swizzle::b64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                     : spec.swizzle == Swizzle::b32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                                                    : CU_TENSOR_MAP_SWIZZLE_NONE;
  TensorMap map;
  const CUresult result =
      encode(&map, tensor_map_type(spec.dtype), static_cast<uint32_t>(spec.rank), const_cast<void*>(spec.base),
             reinterpret_cast<const cuuint64_t*>(spec.dims), reinterpret_cast<const cuuint64_t*>(spec.strides + 1),
             spec.box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) throw DeviceError(str_cat("cuTensorMapEncodeTiled: error ", static_cast<int>(result)));
  return map;
}
#else
inline TensorMap make_tensor_map(const TensorMapSpec& spec) {
  check_tensor_map(spec);
  TensorMap map;
  map.base = static_cast<const unsigned char*>(spec.base);
  map.rank = spec.rank;
  map.element_bytes = static_cast<uint32_t>(dtype_bytes(spec.dtype));
  map.swizzle_bytes = spec.swizzle == Swizzle::none ? 0 : static_cast<uint32_t>(spec.swizzle);
  for (int i = 0; i < 5; ++i) {
    map.dims[i] = i < spec.rank ? spec.dims[i] : 1;
    map.box[i] = i < spec.rank ? spec.box[i] : 1;
    map.strides[i] = i < spec.rank ? spec.strides[i] : 0;
  }
  return map;
}
#endif

#ifdef __CUDACC__
#define QUIRE_LOC
#define QUIRE_LOC_ALONE
#else
#define QUIRE_LOC , Loc loc = Loc::current()
#define QUIRE_LOC_ALONE Loc loc = Loc::current()
#endif

// A barrier in shared memory that counts arrivals and bytes in flight. It starts in phase 0; wait(parity) returns when
// the phase of that parity is complete.
struct alignas(8) Mbarrier {
  uint64_t bits;
};

__device__ __forceinline__ void mbarrier_init(Mbarrier& barrier, uint32_t arrivals QUIRE_LOC) {
#ifdef __CUDACC__
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
#else
  check_shared(&barrier, 8, 8, "mbarrier_init", loc);
  if (arrivals < 1 || arrivals > 1024) fail("mbarrier of more arrivals than a block has threads", loc);
  new (&barrier) hopper::BarrierState{static_cast<uint16_t>(arrivals), static_cast<uint16_t>(arrivals), 0, 0};
#endif
}

// After mbarrier_init by the thread that did it, before the __syncthreads that shows the barriers to the others.
__device__ __forceinline__ void mbarrier_fence_init() {
#ifdef __CUDACC__
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// Orders this thread's plain accesses to shared memory before later ones of TMA and wgmma (after a barrier).
__device__ __forceinline__ void fence_proxy_async() {
#ifdef __CUDACC__
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ __forceinline__ void mbarrier_arrive(Mbarrier& barrier QUIRE_LOC) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
#else
  release(&barrier);
  const Quiet quiet;
  hopper::BarrierState* state = hopper::state_of(&barrier, loc);
  if (state->pending == 0) fail("mbarrier: too many arrivals", loc);
  --state->pending;
  hopper::settle(state);
#endif
}

// Arrives, and says that TMA copies will bring `bytes` before the phase may end.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(Mbarrier& barrier, uint32_t bytes QUIRE_LOC) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)),
               "r"(bytes)
               : "memory");
#else
  {
    const Quiet quiet;
    hopper::BarrierState* state = hopper::state_of(&barrier, loc);
    state->tx = state->tx + static_cast<int32_t>(bytes);
  }
  mbarrier_arrive(barrier, loc);
#endif
}

__device__ __forceinline__ void mbarrier_wait(Mbarrier& barrier, uint32_t parity QUIRE_LOC) {
#ifdef __CUDACC__
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(&barrier)), "r"(parity)
        : "memory");
  } while (done == 0);
#else
  while (!hopper::phase_is_complete(&barrier, parity, loc)) wait_for(&barrier, "mbarrier_wait", loc);
  acquire(&barrier);
#endif
}

// One box of `map` at the coordinates `at` (elements, fastest first) into shared memory; parts outside of the tensor
// are zeros. The box counts box bytes on the barrier, whatever lies outside. One thread issues it.
template <int kRank>
__device__ __forceinline__ void tma_load(void* tile, const TensorMap& map, Mbarrier& barrier,
                                         const int (&at)[kRank] QUIRE_LOC) {
#ifdef __CUDACC__
  const uint32_t to = shared_address(tile), bar = shared_address(&barrier);
#define QUIRE_TMA_LOAD(DIMENSIONS, COORDINATES, ...)                                                                  \
  asm volatile("cp.async.bulk.tensor." DIMENSIONS                                                                     \
               ".shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {" COORDINATES "}], [%2];" ::"r"(to), \
               "l"(&map), "r"(bar), __VA_ARGS__                                                                       \
               : "memory")
  if constexpr (kRank == 2) QUIRE_TMA_LOAD("2d", "%3,%4", "r"(at[0]), "r"(at[1]));
  if constexpr (kRank == 3) QUIRE_TMA_LOAD("3d", "%3,%4,%5", "r"(at[0]), "r"(at[1]), "r"(at[2]));
  if constexpr (kRank == 4) QUIRE_TMA_LOAD("4d", "%3,%4,%5,%6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
  if constexpr (kRank == 5) {
    QUIRE_TMA_LOAD("5d", "%3,%4,%5,%6,%7", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]));
  }
#undef QUIRE_TMA_LOAD
#else
  hopper::issue_load(tile, map, &barrier, at, kRank, loc);
#endif
}

// One box from shared memory to the tensor; what lies outside is left out. After fence_proxy_async of the writers and
// a barrier.
template <int kRank>
__device__ __forceinline__ void tma_store(const TensorMap& map, const void* tile, const int (&at)[kRank] QUIRE_LOC) {
#ifdef __CUDACC__
  const uint32_t from = shared_address(tile);
#define QUIRE_TMA_STORE(DIMENSIONS, COORDINATES, ...)                                                 \
  asm volatile("cp.async.bulk.tensor." DIMENSIONS ".global.shared::cta.bulk_group [%0, {" COORDINATES \
               "}], [%1];" ::"l"(&map),                                                               \
               "r"(from), __VA_ARGS__                                                                 \
               : "memory")
  if constexpr (kRank == 2) QUIRE_TMA_STORE("2d", "%2,%3", "r"(at[0]), "r"(at[1]));
  if constexpr (kRank == 3) QUIRE_TMA_STORE("3d", "%2,%3,%4", "r"(at[0]), "r"(at[1]), "r"(at[2]));
  if constexpr (kRank == 4) QUIRE_TMA_STORE("4d", "%2,%3,%4,%5", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
  if constexpr (kRank == 5) {
    QUIRE_TMA_STORE("5d", "%2,%3,%4,%5,%6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]));
  }
#undef QUIRE_TMA_STORE
#else
  hopper::issue_store(map, tile, at, kRank, loc);
#endif
}

__device__ __forceinline__ void tma_store_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  ++hopper::state().store_groups[thread_index()];
#endif
}

// Until at most kPending of this thread's newest store groups are unfinished: their bytes are in global memory.
template <int kPending>
__device__ __forceinline__ void tma_store_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
#else
  hopper::finish_stores(kPending);
#endif
}

__device__ __forceinline__ void prefetch_tensor_map(const TensorMap& map) {
#ifdef __CUDACC__
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#else
  static_cast<void>(map);
#endif
}

// True for one lane of a full warp, always the same. Which one is not promised, so the emulation does not take lane 0.
__device__ __forceinline__ bool elect_one() {
#ifdef __CUDACC__
  uint32_t elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
  return elected != 0;
#else
  return thread_index() % 32 == 13;
#endif
}

// Moves registers between the warpgroups of a block; all warps of a warpgroup call it.
template <int kRegisters>
__device__ __forceinline__ void increase_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
#ifdef __CUDACC__
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
__device__ __forceinline__ void decrease_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
#ifdef __CUDACC__
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

// Which index of an operand runs along the 16-byte pieces in shared memory.
enum class Major : int { k = 0, mn = 1 };

// The 64-bit descriptor of an operand tile. Lines of kSwizzle bytes; 8 lines are an atom.
//   K-major:  a line holds 8 to 64 k of one row; atoms of 8 rows follow each other. Next 16 k: 32 bytes on.
//   MN-major: a line holds 8 to 64 rows of one k; atoms of 8 k follow each other, and panels of a line's width are
//             panel_bytes apart. Next 16 k: two atoms on.
template <Major kMajor, Swizzle kSwizzle = Swizzle::b128>
__device__ __forceinline__ uint64_t matrix_descriptor(const void* tile, uint32_t panel_bytes = 16 QUIRE_LOC) {
  static_assert(kSwizzle != Swizzle::none);
  constexpr auto kLine = static_cast<uint32_t>(kSwizzle);
  constexpr uint64_t kMode = kSwizzle == Swizzle::b128 ? 1 : kSwizzle == Swizzle::b64 ? 2 : 3;
#ifdef __CUDACC__
  const uint32_t address = shared_address(tile);
#else
  const uint32_t address = hopper::shared_offset(tile, "wgmma tile", loc);
  check_aligned(tile, kLine * 8, "wgmma tile", loc);
#endif
  return uint64_t{(address & 0x3ffff) >> 4} | uint64_t{panel_bytes >> 4} << 16 | uint64_t{kLine * 8 >> 4} << 32 |
         kMode << 62;
}

// The descriptor `bytes` further on in shared memory.
__device__ __forceinline__ uint64_t advance(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

__device__ __forceinline__ void wgmma_fence(QUIRE_LOC_ALONE) {
#ifdef __CUDACC__
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  hopper::fence_wgmma(loc);
#endif
}

__device__ __forceinline__ void wgmma_commit(QUIRE_LOC_ALONE) {
#ifdef __CUDACC__
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  hopper::commit_wgmma(loc);
#endif
}

// Until at most kPending of the newest groups are unfinished.
template <int kPending>
__device__ __forceinline__ void wgmma_wait(QUIRE_LOC_ALONE) {
#ifdef __CUDACC__
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#else
  hopper::finish_wgmma(kPending, loc);
#endif
}

// Keeps the compiler from moving accesses of registers across: after the wait for a wgmma that writes or reads them.
template <typename T, int kCount>
__device__ __forceinline__ void keep_registers(T (&registers)[kCount]) {
#ifdef __CUDACC__
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (sizeof(T) == 4 && static_cast<T>(0.5f) == static_cast<T>(0)) {
      asm volatile("" : "+r"(registers[i])::"memory");
    } else {
      asm volatile("" : "+f"(registers[i])::"memory");
    }
  }
#else
  static_cast<void>(registers);
#endif
}

// d[64][kColumns] (+)= A[64][16] B[16][kColumns], both operands in shared memory. Thread t of the warpgroup holds
// rows t / 32 * 16 + t % 32 / 4 (+ 8), columns 8 j + t % 4 * 2 (+ 1): d[4 j + 2 * (lower row) + column].
template <typename Tag, int kColumns, Major kBMajor = Major::k, Major kAMajor = Major::k>
__device__ __forceinline__ void wgmma(float (&d)[kColumns / 2], uint64_t a, uint64_t b, bool accumulate QUIRE_LOC) {
#ifdef __CUDACC__
  WgmmaInstruction<Tag, kColumns>::template run<static_cast<int>(kAMajor), static_cast<int>(kBMajor)>(d, a, b,
                                                                                                      accumulate);
#else
  auto record =
      hopper::make_record<Tag>(d, nullptr, kColumns, kAMajor == Major::mn, kBMajor == Major::mn, accumulate, loc);
  record.op.a = a;
  record.op.b = b;
  hopper::issue_wgmma(record);
#endif
}

// The same with A in registers, as mma.m16n8k16 holds it in each warp. `a` must live, unchanged, until the wait.
template <typename Tag, int kColumns, Major kBMajor = Major::k>
__device__ __forceinline__ void wgmma(float (&d)[kColumns / 2], const uint32_t (&a)[4], uint64_t b,
                                      bool accumulate QUIRE_LOC) {
#ifdef __CUDACC__
  WgmmaInstruction<Tag, kColumns>::template run<static_cast<int>(kBMajor)>(d, a, b, accumulate);
#else
  auto record = hopper::make_record<Tag>(d, a, kColumns, false, kBMajor == Major::mn, accumulate, loc);
  record.op.b = b;
  hopper::issue_wgmma(record);
#endif
}

#undef QUIRE_LOC
#undef QUIRE_LOC_ALONE

}  // namespace quire::simt
