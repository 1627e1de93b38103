// Sums over ranks of rows in peer memory, added to the residual stream, and the norm of the result.
//
// Mapping: that of norm.cuh: a row belongs to a warp up to 1,024 elements, else to a block of 512; thread t has the
// runs of four elements t, t + kRowThreads, ... A thread sums the runs that it norms, so it reads back what it wrote
// itself and needs no barrier for it. Order: ranks in turn, then the residual; the norm's is norm.cuh's, and so are its
// bits. No kernel waits for another rank: the streams do, before and after (comm/peer.h). Limit: the link. One-shot
// reads num_partials - 1 rows from peers, two-shot reads as much of its share and writes it num_outs - 1 times; 16
// bytes a thread and access.
#pragma once

#include "cuda/layer/norm.cuh"
#include "params/reduce_rows.h"

namespace quire::cuda {

struct ReduceRowsArgs {
  ReduceRowsParams params;
  bool is_wide = false;  // all rows may be accessed four elements at a time
};

__device__ inline void sum_run(const ReduceRowsParams& p, int64_t row, int run, bool is_wide) {
  const int dim = static_cast<int>(p.dim);
  float sum[4];
  load_run(p.partials[0] + row * p.partial_stride, run, dim, is_wide, sum);
#pragma unroll
  for (int rank = 1; rank < kMaxRanks; ++rank) {
    if (rank >= p.num_partials) break;
    float term[4];
    load_run(p.partials[rank] + row * p.partial_stride, run, dim, is_wide, term);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += term[i];
  }
  if (p.base != nullptr) {
    float base[4];
    load_run(p.base + row * p.out_stride, run, dim, is_wide, base);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = base[i] + sum[i];
  }
#pragma unroll
  for (int out = 0; out < kMaxRanks; ++out) {
    if (out >= p.num_outs) break;
    store_run(sum, run, dim, is_wide, p.outs[out] + row * p.out_stride);
  }
}

template <typename Out, int kRowThreads>
__device__ inline void norm_sum(const ReduceRowsParams& p, int64_t row, bool is_wide, NormShared* shared) {
  const int dim = static_cast<int>(p.dim);
  NormParams norm;
  norm.kind = p.norm_kind;
  norm.dim = p.dim;
  norm.eps = p.eps;
  RowShare<kRowThreads> share(p.outs[0] + row * p.out_stride, dim, is_wide);
  const RowStatistics statistics = row_statistics(share, norm, shared);
  share.for_each_run([&](int run, const float (&x)[4], int) {
    float weight[4] = {1.0f, 1.0f, 1.0f, 1.0f}, bias[4] = {0.0f, 0.0f, 0.0f, 0.0f}, y[4];
    if (p.norm_weight != nullptr) load_run(p.norm_weight, run, dim, is_wide, weight);
    if (p.norm_bias != nullptr) load_run(p.norm_bias, run, dim, is_wide, bias);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      y[i] = (x[i] - statistics.mean) * statistics.factor * weight[i];
      if (p.norm_bias != nullptr) y[i] += bias[i];
    }
#pragma unroll
    for (int out = 0; out < kMaxRanks; ++out) {
      if (out >= p.num_outs) break;
      store_run(y, run, dim, is_wide, static_cast<Out*>(p.normed[out]) + row * p.normed_stride);
    }
  });
}

template <typename Out, int kRowThreads>
__global__ void __launch_bounds__(kRowThreads == 32 ? 32 * kNormWarpRows : kRowThreads)
    reduce_rows_kernel(const __grid_constant__ ReduceRowsArgs args) {
  const ReduceRowsParams& p = args.params;
  simt::grid_dependency_wait();
  simt::grid_dependency_launch();
  const int64_t row = kRowThreads == 32 ? int64_t{blockIdx.x} * kNormWarpRows + threadIdx.x / 32 : int64_t{blockIdx.x};
  if (row >= p.rows) return;  // a whole warp, in a kernel without barriers
  NormShared* shared = nullptr;
  if constexpr (kRowThreads > 32) shared = &simt::block_shared<NormShared>();
  const int num_runs = static_cast<int>((p.dim + 3) / 4);
  for (int run = static_cast<int>(threadIdx.x) % kRowThreads; run < num_runs; run += kRowThreads) {
    sum_run(p, row, run, args.is_wide);
  }
  if (p.has_norm) norm_sum<Out, kRowThreads>(p, row, args.is_wide, shared);
}

}  // namespace quire::cuda
