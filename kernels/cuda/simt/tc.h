// Tensor-core, ldmatrix and cp.async primitives: PTX under nvcc, warp collectives in the emulation.
//
//   mma_m16n8k16(d, a, b, tag)       d += a * b; tag bf16 or f16. Fragments are as the PTX manual lays them out; lane =
//                                    4 * group + member. a[i] holds rows group + 8 * (i & 1), columns 2 * member + 8 *
//                                    (i >> 1) and the next; b[i] holds column group, rows 2 * member + 8 * i and the
//                                    next; d[i] holds row group + 8 * (i >> 1), column 2 * member + (i & 1).
//   mma_m16n8k32(d, a, b, tag)       The same for 8-bit elements, four a register, with 4 * member and 16 in place of
//                                    2 * member and 8 along k; tag e4m3, or s8 with int32_t d.
//   ldmatrix<trans>(r, row)          Loads as many 8x8 matrices of 16-bit elements as r has registers: 1, 2 or 4. Lane
//   l
//                                    gives the address of row l % 8 of matrix l / 8 (lanes beyond the last matrix are
//                                    not looked at). r[i]: matrix i, row group, columns 2 * member and the next;
//                                    transposed: rows and columns swapped.
//   stmatrix_x4(row, r)              The opposite of ldmatrix<false> of four.
//   cp_async16(to, from, valid)      16 bytes from global to shared memory, there after the wait for their group; zeros
//                                    where !valid, and then `from` is not read.
//   cp_async16_hinted(to, from, p)   For bytes that are read once: with evict_first_policy(), first to leave L2.
//   cp_async_commit(), _wait<N>()    All but the N newest groups of this thread have landed; other threads see them
//                                    after a barrier.
//
// The emulation adds along k in ascending order in float; the hardware's order and rounding are its own.
#pragma once

#include "cuda/simt/simt.h"

namespace quire::simt {

struct bf16_tag {};
struct f16_tag {};
struct e4m3_tag {};
struct s8_tag {};

using CachePolicy = uint64_t;

}  // namespace quire::simt

#if defined(__CUDACC__)
#include "cuda/nvcc/tc_ptx.h"
#else
#include "cuda/simt/tc_emulation.h"
#endif
