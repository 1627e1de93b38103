// Means of runs of rows: the hidden states of a text's tokens as one vector.
//
// Mapping: grid (run, 128 columns), a thread a column: neighbouring threads read neighbouring columns, and four rows
// are in flight a thread. Four running sums, of rows 0, 4, 8, ..., of rows 1, 5, 9, ... and so on, are added in a fixed
// order; a run's bits depend on its rows alone. Nothing is shared. Limit: bytes, 4 * dim read a row.
#include "base/check.h"
#include "cuda/layer/elements.cuh"
#include "cuda/layer/layer.h"

namespace quire::cuda {
namespace {

constexpr int kMeanThreads = 128;
constexpr int kMeanSums = 4;

template <typename Out>
__global__ void __launch_bounds__(kMeanThreads) mean_rows_kernel(const __grid_constant__ MeanRowsParams p) {
  simt::grid_dependency_wait();
  simt::grid_dependency_launch();
  const int64_t run = blockIdx.x, column = int64_t{blockIdx.y} * kMeanThreads + threadIdx.x;
  if (column >= p.dim) return;
  const int begin = p.row_start[run], end = p.row_start[run + 1];
  const float* const x = p.x + column;
  float sums[kMeanSums] = {};
  int row = begin;
  for (; row + kMeanSums <= end; row += kMeanSums) {
    float loaded[kMeanSums];
#pragma unroll
    for (int j = 0; j < kMeanSums; ++j) loaded[j] = x[(row + j) * p.x_stride];
#pragma unroll
    for (int j = 0; j < kMeanSums; ++j) sums[j] = __fadd_rn(sums[j], loaded[j]);
  }
#pragma unroll
  for (int j = 0; j < kMeanSums; ++j) {
    if (row + j < end) sums[j] = __fadd_rn(sums[j], x[(row + j) * p.x_stride]);
  }
  const float sum = __fadd_rn(__fadd_rn(sums[0], sums[1]), __fadd_rn(sums[2], sums[3]));
  from_float(sum / static_cast<float>(max(1, end - begin)), static_cast<Out*>(p.out)[run * p.out_stride + column]);
}

template <typename Out>
void launch_mean(const MeanRowsParams& p, Stream stream) {
  const dim3 grid(static_cast<unsigned>(p.num_runs), static_cast<unsigned>((p.dim + kMeanThreads - 1) / kMeanThreads));
  simt::launch<mean_rows_kernel<Out>>({.grid = grid, .block = dim3(kMeanThreads), .stream = stream, .pdl = true}, p);
}

}  // namespace

void mean_rows(const MeanRowsParams& p, Stream stream) {
  QUIRE_CHECK(p.num_runs >= 0 && p.num_runs <= INT32_MAX && p.dim > 0, p.num_runs, " runs of rows of ", p.dim);
  if (p.num_runs == 0) return;
  switch (p.out_dtype) {
    case DType::f32:
      return launch_mean<float>(p, stream);
    case DType::bf16:
      return launch_mean<__nv_bfloat16>(p, stream);
    case DType::f16:
      return launch_mean<__half>(p, stream);
    default:
      throw NotSupported(str_cat("means of rows as ", dtype_name(p.out_dtype)));
  }
}

}  // namespace quire::cuda
