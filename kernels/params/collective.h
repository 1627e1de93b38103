// What the ranks of a tensor-parallel group do together: sums over ranks, columns of ranks side by side, one rank's
// bytes for all.
//
// Every rank calls the same collectives in the same order with equal shapes. Sums are taken in float32. quire's own are
// in the order of the ranks, so a result is the same on every rank, and the same whenever it is computed; those of a
// library are in an order of its own, which may depend on the place of an element and on the number of rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "params/norm.h"

namespace quire {

constexpr int kMaxRanks = 8;

// out[r] (+)= the sum over ranks of partial[r], and the norm of it where one is asked for, of a
// Communicator that fuses_norm(). Rows lie without gaps. `out` is apart from `partial`; with `accumulate` it holds the
// same on every rank.
struct AllReduceParams {
  // [rows, dim]; the caller leaves it alone until the collective after the next one. What it holds afterwards is open:
  // a library may sum in place.
  float* partial = nullptr;
  float* out = nullptr;  // [rows, dim]
  int64_t rows = 0;
  int64_t dim = 0;
  bool accumulate = false;
  bool has_norm = false;
  NormKind norm_kind = NormKind::rms;
  const float* norm_weight = nullptr;  // [dim] or null
  const float* norm_bias = nullptr;    // [dim] or null
  float eps = 0.0f;
  void* normed = nullptr;  // [rows, dim]
  DType normed_dtype = DType::f32;
};

// Rank 0's out[r, first_column + c] = part[r, c] of each rank. Columns of ranks do not overlap.
struct GatherColumnsParams {
  const float* part = nullptr;  // [rows, columns]
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t first_column = 0;
  float* out = nullptr;  // of rank 0, rows out_stride elements apart
  int64_t out_stride = 0;
};

}  // namespace quire
