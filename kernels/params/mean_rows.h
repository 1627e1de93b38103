// Means of runs of rows: what turns the hidden states of a text's tokens into one vector.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace quire {

// out[g] = mean of rows [row_start[g], row_start[g + 1]) of x; zeros for a run without rows. The order of the sum
// depends on a row's place in its run alone.
struct MeanRowsParams {
  const float* x = nullptr;  // [*, dim], rows x_stride elements apart
  int64_t x_stride = 0;
  const int32_t* row_start = nullptr;  // [num_runs + 1]
  int64_t num_runs = 0;
  int64_t dim = 0;
  void* out = nullptr;  // [num_runs, dim], rows out_stride elements apart
  DType out_dtype = DType::f32;
  int64_t out_stride = 0;
};

}  // namespace quire
