// RMSNorm and LayerNorm of rows of the float32 residual stream, or their bare gather and cast.
//
//   rms: y = x / sqrt(mean(x^2) + eps) * weight          layer: y = (x - mean) / sqrt(var + eps) * weight + bias
//
// Mapping: a row belongs to kRowThreads threads, a warp (four rows a block of 128) up to 1,024 elements, else a block
// of 512. Thread t has the runs of four elements t, t + kRowThreads, ...: one 16-byte load each where the rows allow
// it, four loads else, so the bits do not depend on alignment. The first kKept runs stay in registers (8,192 elements
// with a block, all of them with a warp); what is beyond is read again from L2 for the second sum and for the result.
// Order of a sum: a thread's runs in turn, its four components, lanes by halving distance, warps in turn. It depends on
// dim alone. Shared: the sums of the warps, an array for each of the two reductions of LayerNorm, so that one barrier a
// reduction is enough: it stands between a warp's write and everybody's read, and nothing is written twice.
// In place: a thread reads the elements that it writes, and no other thread's; the sums are complete before.
// Limit: bytes. 4 * dim read and out_bytes * dim written a row; 3 flops an element. The weight comes from L2, before
// the wait for the previous kernel.
#pragma once

#include <type_traits>

#include "cuda/layer/elements.cuh"
#include "params/norm.h"

namespace quire::cuda {

struct NormArgs {
  NormParams params;
  bool is_wide = false;  // all rows may be accessed four elements at a time
};

constexpr int kNormWarpRows = 4;        // rows of a block whose rows belong to warps
constexpr int kNormBlockThreads = 512;  // threads of a row that has a block
constexpr int kNormWarpMaxDim = 1024;   // 32 lanes x kNormKept<32> runs x 4
template <int kRowThreads>
constexpr int kNormKept = kRowThreads == 32 ? 8 : 4;

struct NormShared {
  float sums[2][kNormBlockThreads / 32];
};

// Elements [4 * run, 4 * run + 4) of a row of dim elements; 0 beyond its end.
template <typename T>
__device__ inline void load_run(const T* row, int run, int dim, bool is_wide, float (&out)[4]) {
  if (is_wide) {
    load_elements(row + 4 * run, out);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = 4 * run + i < dim ? to_float(row[4 * run + i]) : 0.0f;
}

template <typename T>
__device__ inline void store_run(const float (&values)[4], int run, int dim, bool is_wide, T* row) {
  if (is_wide) {
    store_elements(values, row + 4 * run);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (4 * run + i < dim) from_float(values[i], row[4 * run + i]);
  }
}

// The same on every thread of the row. shared is null where a row has one warp.
template <int kRowThreads>
__device__ inline float sum_over_row(float x, NormShared* shared, int reduction) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  if constexpr (kRowThreads > 32) {
    float* warp_sums = shared->sums[reduction];
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kRowThreads / 32; ++warp) x += warp_sums[warp];
  }
  return x;
}

// One thread's share of a row of x.
template <int kRowThreads>
class RowShare {
 public:
  __device__ RowShare(const float* row, int dim, bool is_wide)
      : row_(row),
        dim_(dim),
        num_runs_((dim + 3) / 4),
        thread_(static_cast<int>(threadIdx.x) % kRowThreads),
        is_wide_(is_wide) {
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      if (run(j) < num_runs_) load_run(row_, run(j), dim_, is_wide_, kept_[j]);
    }
  }

  // Calls use(run, its four elements, index) for the thread's runs in turn; index is the place in registers, -1: none.
  template <typename Use>
  __device__ void for_each_run(const Use& use) {
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      if (run(j) < num_runs_) use(run(j), kept_[j], j);
    }
    for (int r = run(kKept); r < num_runs_; r += kRowThreads) {
      float elements[4];
      load_run(row_, r, dim_, is_wide_, elements);
      use(r, elements, -1);
    }
  }

  static constexpr int kKept = kNormKept<kRowThreads>;

 private:
  __device__ int run(int j) const { return thread_ + j * kRowThreads; }

  const float* row_;
  int dim_, num_runs_, thread_;
  bool is_wide_;
  float kept_[kKept][4];
};

// mean(x) and 1 / sqrt(... + eps) of the row.
struct RowStatistics {
  float mean = 0.0f;
  float factor = 1.0f;
};

template <int kRowThreads>
__device__ inline RowStatistics row_statistics(RowShare<kRowThreads>& share, const NormParams& p, NormShared* shared) {
  RowStatistics result;
  if (p.kind == NormKind::none) return result;
  const int dim = static_cast<int>(p.dim);
  const float inv_dim = 1.0f / static_cast<float>(dim);
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (p.kind == NormKind::layer) {
    share.for_each_run([&](int, const float (&x)[4], int) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] += x[i];
    });
    result.mean = sum_over_row<kRowThreads>((sum[0] + sum[1]) + (sum[2] + sum[3]), shared, 0) * inv_dim;
    sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
  }
  share.for_each_run([&](int run, const float (&x)[4], int) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float deviation = 4 * run + i < dim ? x[i] - result.mean : 0.0f;
      sum[i] += deviation * deviation;
    }
  });
  const float square = sum_over_row<kRowThreads>((sum[0] + sum[1]) + (sum[2] + sum[3]), shared, 1) * inv_dim;
  result.factor = rsqrtf(square + p.eps);
  return result;
}

template <typename Out, int kRowThreads>
__global__ void __launch_bounds__(kRowThreads == 32 ? 32 * kNormWarpRows : kRowThreads)
    norm_kernel(const __grid_constant__ NormArgs args) {
  const NormParams& p = args.params;
  constexpr int kKept = kNormKept<kRowThreads>;
  const int dim = static_cast<int>(p.dim);
  const int thread = static_cast<int>(threadIdx.x) % kRowThreads;
  float weight[kKept][4];
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
#pragma unroll
    for (float& each : weight[j]) each = 1.0f;
    const int run = thread + j * kRowThreads;
    if (p.weight != nullptr && 4 * run < dim) load_run(p.weight, run, dim, args.is_wide, weight[j]);
  }
  simt::grid_dependency_wait();
  simt::grid_dependency_launch();
  const int64_t row = kRowThreads == 32 ? int64_t{blockIdx.x} * kNormWarpRows + threadIdx.x / 32 : int64_t{blockIdx.x};
  if (row >= p.rows) return;  // a whole warp, in a kernel without barriers
  NormShared* shared = nullptr;
  if constexpr (kRowThreads > 32) shared = &simt::block_shared<NormShared>();
  RowShare<kRowThreads> share(p.x + (p.row_ids != nullptr ? int64_t{p.row_ids[row]} : row) * p.x_stride, dim,
                              args.is_wide);
  const RowStatistics statistics = row_statistics(share, p, shared);
  Out* out = static_cast<Out*>(p.out) + row * p.out_stride;
  share.for_each_run([&](int run, const float (&x)[4], int kept) {
    float w[4] = {1.0f, 1.0f, 1.0f, 1.0f}, added[4] = {0.0f, 0.0f, 0.0f, 0.0f}, y[4];
    if (kept < 0 && p.weight != nullptr) load_run(p.weight, run, dim, args.is_wide, w);
    if (p.bias != nullptr) load_run(p.bias, run, dim, args.is_wide, added);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      y[i] = (x[i] - statistics.mean) * statistics.factor * (kept >= 0 ? weight[kept < 0 ? 0 : kept][i] : w[i]);
      if (p.bias != nullptr) y[i] += added[i];
    }
    if constexpr (std::is_same_v<Out, float>) {
      if (p.accumulate) {
        load_run(out, run, dim, args.is_wide, added);
#pragma unroll
        for (int i = 0; i < 4; ++i) y[i] = added[i] + y[i];
      }
    }
    store_run(y, run, dim, args.is_wide, out);
  });
}

}  // namespace quire::cuda
