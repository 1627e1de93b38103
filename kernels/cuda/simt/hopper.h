// Hopper's asynchronous instructions, one function each: mbarrier, TMA tile copies, wgmma, setmaxnreg. Under nvcc for
// sm_90a they are PTX (kernels/cuda/nvcc/hopper_ptx.h), elsewhere the emulation of hopper_emulation.h, late on purpose.
//
// What orders what (PTX ISA 8.0 and later, memory consistency of the async proxy):
//   TMA writes -> readers          the mbarrier that the copy names: arrive_expect_tx before, wait after
//   readers -> next TMA write      an "empty" mbarrier the readers arrive on
//   plain writes -> TMA, wgmma     fence_proxy_async by the writer, then a barrier
//   register writes -> wgmma       wgmma_fence; registers belong to the instruction until wgmma_wait
//
// An Mbarrier lies in shared memory and counts arrivals and bytes in flight. It starts in phase 0.
//   mbarrier_init(barrier, arrivals)
//   mbarrier_fence_init()             after it by the same thread, before the __syncthreads that shows the barriers
//   mbarrier_arrive(barrier)
//   mbarrier_arrive_expect_tx(barrier, bytes)   and TMA copies will bring `bytes` before the phase may end
//   mbarrier_wait(barrier, parity)    returns when the phase of that parity is complete
//   fence_proxy_async()               this thread's plain accesses to shared memory come before later ones of TMA and
//                                     wgmma (after a barrier)
//   make_tensor_map(spec)             on the host; prefetch_tensor_map(map) in the kernel
//   tma_load(tile, map, barrier, at)  one box of the map at the coordinates `at` (elements, fastest first) into shared
//                                     memory; parts outside of the tensor are zeros. It counts the bytes of a whole box
//                                     on the barrier, whatever lies outside. One thread issues it.
//   increase_registers<n>(), decrease_registers<n>()    all warps of a warpgroup call it
//   wgmma<tag, columns, b_major, a_major>(d, a, b, accumulate)
//                                     d[64][columns] (+)= A[64][16] B[16][columns], descriptors of tiles in shared
//                                     memory. Thread t of the warpgroup holds rows t / 32 * 16 + t % 32 / 4 (+ 8),
//                                     columns 8 j + t % 4 * 2 (+ 1): d[4 j + 2 * (lower row) + column].
//   wgmma<tag, columns, b_major>(d, registers, b, accumulate)
//                                     the same with A in registers, as mma.m16n8k16 holds it in each warp. They must
//                                     live, unchanged, until the wait.
//   wgmma_fence(), wgmma_commit(), wgmma_wait<n>()    until at most n of the newest groups are unfinished
//   keep_registers(registers)         keeps the compiler from moving accesses of registers across: after the wait for
//                                     a wgmma that writes or reads them
#pragma once

#include <cstdint>

#include "base/check.h"
#include "base/dtype.h"
#include "cuda/simt/tc.h"

namespace quire::simt {

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
  QUIRE_CHECK(spec.dtype == DType::bf16 || spec.dtype == DType::f16, "tensor map of ", dtype_name(spec.dtype));
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

// Which index of an operand runs along the 16-byte pieces in shared memory.
enum class Major : int { k = 0, mn = 1 };

// The 64-bit descriptor of an operand tile at an address of shared memory. Lines of kSwizzle bytes; 8 lines are an
// atom.
//   K-major:  a line holds 8 to 64 k of one row; atoms of 8 rows follow each other. Next 16 k: 32 bytes on.
//   MN-major: a line holds 8 to 64 rows of one k; atoms of 8 k follow each other, and panels of a line's width are
//             panel_bytes apart. Next 16 k: two atoms on.
template <Swizzle kSwizzle>
__device__ __forceinline__ uint64_t encode_descriptor(uint32_t address, uint32_t panel_bytes) {
  static_assert(kSwizzle != Swizzle::none);
  constexpr uint64_t kAtom = static_cast<uint64_t>(kSwizzle) * 8;
  constexpr uint64_t kMode = kSwizzle == Swizzle::b128 ? 1 : kSwizzle == Swizzle::b64 ? 2 : 3;
  return uint64_t{(address & 0x3ffff) >> 4} | uint64_t{panel_bytes >> 4} << 16 | kAtom >> 4 << 32 | kMode << 62;
}

// The descriptor `bytes` further on in shared memory.
__device__ __forceinline__ uint64_t advance(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

}  // namespace quire::simt

#ifdef __CUDACC__
#include "cuda/nvcc/hopper_ptx.h"
#else
#include "cuda/simt/hopper_emulation.h"
#endif
