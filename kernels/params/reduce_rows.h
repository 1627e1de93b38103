// The sum of what several ranks have of some rows, added to the residual stream, and the norm of the result: one launch
// for what would be three.
//
//   sum[r] = base[r] + (partials[0][r] + partials[1][r] + ...)      normed[r] = norm(sum[r])
//
// One-shot: a rank takes all rows and writes to its own memory alone. Two-shot: it takes its share of the rows and
// writes them to every rank's memory. The sum of a row has the same bits in both, and in whichever launch.
#pragma once

#include <cstdint>

#include "params/collective.h"
#include "params/norm.h"

namespace quire {

struct ReduceRowsParams {
  const float* partials[kMaxRanks] = {};  // [rows, dim] of each rank, in the order of the sum
  int32_t num_partials = 0;
  int64_t partial_stride = 0;
  int64_t rows = 0;
  int64_t dim = 0;
  const float* base = nullptr;  // [rows, dim], rows out_stride elements apart, or null; may be one of outs
  float* outs[kMaxRanks] = {};  // [rows, dim], all get the same
  int32_t num_outs = 0;
  int64_t out_stride = 0;
  bool has_norm = false;
  NormKind norm_kind = NormKind::rms;
  const float* norm_weight = nullptr;  // [dim] or null (all ones)
  const float* norm_bias = nullptr;    // [dim] or null
  float eps = 0.0f;
  void* normed[kMaxRanks] = {};  // with has_norm: [rows, dim], num_outs of them
  DType normed_dtype = DType::f32;
  int64_t normed_stride = 0;
};

}  // namespace quire
