// Rows of 16-bit elements in shared memory, and the fragments of m16n8k16 taken from them.
//
// A row is cut into pieces of 16 bytes, what cp.async brings and a matrix row of ldmatrix is. The eight rows that
// ldmatrix reads at once must lie in eight different groups of four banks: where a row is a multiple of 128 bytes,
// piece c of row r lies at c ^ (r & 7); else rows are an odd number of pieces apart.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/simt/tc.h"

namespace quire::cuda {

template <int kColumns>
struct SharedRows {
  static_assert(kColumns % 16 == 0);
  static constexpr int kPieces = kColumns / 8;
  static constexpr bool kSwizzled = kPieces % 8 == 0;
  static constexpr int kStride = kSwizzled ? kPieces : kPieces | 1;  // pieces from row to row

  __device__ static __forceinline__ int at(int row, int piece) {
    return row * kStride + (kSwizzled ? piece ^ (row & 7) : piece);
  }
  // A 16 x 16 matrix at (row, 16 * column) as the left operand.
  __device__ static __forceinline__ void load_left(const uint4* rows, int row, int column, uint32_t (&a)[4]) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    simt::ldmatrix<false>(a, rows + at(row + (lane & 15), column * 2 + (lane >> 4)));
  }
  // Keys [row, row + 16) of 16 columns as right operands whose columns are the keys: b[0..1] the first eight keys.
  __device__ static __forceinline__ void load_keys(const uint4* rows, int row, int column, uint32_t (&b)[4]) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    simt::ldmatrix<false>(b, rows + at(row + (lane & 7) + (lane >> 4) * 8, column * 2 + (lane >> 3 & 1)));
  }
  // Keys [row, row + 32) of 8 columns as right operands whose rows are the keys: b[0..1] the first sixteen keys.
  __device__ static __forceinline__ void load_values(const uint4* rows, int row, int piece, uint32_t (&b)[4]) {
    simt::ldmatrix<true>(b, rows + at(row + static_cast<int>(threadIdx.x % 32), piece));
  }
};

// Two numbers, rounded to the operand's type, as one register of a fragment; the first in the low half.
__device__ __forceinline__ uint32_t pack_pair(simt::bf16_tag /*type*/, float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}
__device__ __forceinline__ uint32_t pack_pair(simt::f16_tag /*type*/, float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}

template <typename T>
using MmaTag = std::conditional_t<std::is_same_v<T, __half>, simt::f16_tag, simt::bf16_tag>;

// d += a * (b[kFirst], b[kFirst + 1])
template <typename T, int kFirst>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  const uint32_t pair[2] = {b[kFirst], b[kFirst + 1]};
  simt::mma_m16n8k16(d, a, pair, MmaTag<T>());
}

}  // namespace quire::cuda
