// Attention of one query row by one block, by CUDA cores: float32, and head sizes that the tensor-core kernel lacks.
//
//   out = sum over keys of softmax(softcap(scale q . k) + slope (key - position) + bias[key - position]) v
//
// Mapping. Block = (token, head). The four warps take the splits of 256 keys in turn, 32 keys (one a lane) at a time
// for the scores, head_dim over the lanes for the values; each leaves the state of its split in shared memory, and the
// states fold from left to right, four a round. A row's bits depend on its own keys alone.
// Barriers: the query is there; the states of a round are there; they have been read.
// Bytes: every row reads its own keys, so a group of query heads reads them again, from the second-level cache mostly.
// It is for models that are small or odd, not for speed.
#include "cuda/attention/attend_launch.h"
#include "cuda/attention/softmax_state.cuh"
#include "cuda/attention/visible.cuh"
#include "cuda/layer/elements.cuh"

namespace quire::cuda {
namespace {

constexpr int kPlainThreads = 128, kWarps = kPlainThreads / 32;
constexpr int kMaxColumns = kMaxPlainHeadDim / 32;  // of a lane

struct PlainArgs {
  PagedAttentionParams p;
};

struct PlainShared {
  float query[kMaxPlainHeadDim];
  float out[kWarps][kMaxPlainHeadDim];
  float max[kWarps], sum[kWarps];
};

struct PlainRow {
  int head, kv_head, position;
  int begin, end;  // visible keys
  const int32_t* table;
};

// The sequence of a token by bisection; false when there is no such token.
__device__ bool find_row(const PagedAttentionParams& p, int token, int head, PlainRow& row) {
  if (token >= p.query_start[p.num_seqs]) return false;
  int low = 0, high = p.num_seqs;  // query_start[low] <= token < query_start[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (p.query_start[middle] <= token ? low : high) = middle;
  }
  const int kv_len = p.kv_lens[low];
  row.head = head;
  row.kv_head = head / (p.num_heads / p.kv.num_kv_heads);
  row.position = kv_len - p.query_start[low + 1] + token;
  row.begin = p.window > 0 ? max(0, row.position - p.window + 1) : 0;
  row.end = end_of_keys(p.causal, p.window, row.position, kv_len);
  row.table = p.block_tables + low * p.block_table_stride;
  return true;
}

template <typename T>
__device__ const T* key_row(const PagedAttentionParams& p, const void* pages, const PlainRow& row, int key) {
  const int page = row.table[key / p.kv.block_size];
  return static_cast<const T*>(pages) +
         kv_offset(page, row.kv_head, key % p.kv.block_size, p.kv.num_kv_heads, p.kv.block_size, p.kv.head_dim);
}

template <typename T>
__device__ float score(const PagedAttentionParams& p, const PlainShared& s, const PlainRow& row, int key) {
  if (key < row.begin || key >= row.end) return -INFINITY;
  const T* const k = key_row<T>(p, p.kv.k, row, key);
  float dot = 0.0f;
  for (int d = 0; d < p.kv.head_dim; ++d) dot = fmaf(s.query[d], to_float(k[d]), dot);
  float x = __fmul_rn(dot, p.scale);
  if (p.softcap > 0.0f) x = soft_cap(x, p.softcap);
  if (p.alibi_slopes != nullptr) x = fmaf(p.alibi_slopes[row.head], static_cast<float>(key - row.position), x);
  if (p.relative_bias != nullptr) {
    const int reach = p.relative_reach, distance = max(-reach, min(reach, key - row.position));
    x = __fadd_rn(x, p.relative_bias[row.head * (2 * reach + 1) + reach + distance]);
  }
  return __fmul_rn(x, kLog2e);
}

__device__ __forceinline__ float warp_max(float x) {
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  return x;
}
__device__ __forceinline__ float warp_sum(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// The state of one split, computed by one warp.
template <typename T, int kColumns>
__device__ void attend_split(const PagedAttentionParams& p, PlainShared& s, const PlainRow& row, int split) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float out[kColumns] = {}, max = -INFINITY, sum = 0.0f;
  for (int first = split * kSplitKeys; first < (split + 1) * kSplitKeys; first += 32) {
    if (first + 32 <= row.begin || first >= row.end) continue;
    const float x = score<T>(p, s, row, first + lane);
    const float new_max = fmaxf(max, warp_max(x));
    const float factor = simt::exp2_approx(max - new_max), weight = simt::exp2_approx(x - new_max);
    max = new_max;
    sum = fmaf(sum, factor, warp_sum(weight));
#pragma unroll
    for (int i = 0; i < kColumns; ++i) out[i] *= factor;
    for (int j = 0; j < 32; ++j) {
      const float other = __shfl_sync(~0u, weight, j);
      if (first + j < row.begin || first + j >= row.end) continue;
      const T* const v = key_row<T>(p, p.kv.v, row, first + j);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        if (i * 32 + lane < p.kv.head_dim) out[i] = fmaf(other, to_float(v[i * 32 + lane]), out[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    if (i * 32 + lane < p.kv.head_dim) s.out[warp][i * 32 + lane] = out[i];
  }
  if (lane == 0) {
    s.max[warp] = max;
    s.sum[warp] = sum;
  }
}

template <typename T, int kColumns>
__global__ void __launch_bounds__(kPlainThreads) plain_kernel(const __grid_constant__ PlainArgs args) {
  const PagedAttentionParams& p = args.p;
  auto& s = simt::block_shared<PlainShared>();
  simt::grid_dependency_wait();
  simt::grid_dependency_launch();
  const int token = static_cast<int>(blockIdx.x), head_dim = p.kv.head_dim;
  constexpr int kOwn = (kColumns * 32 + kPlainThreads - 1) / kPlainThreads;  // columns that a thread folds
  PlainRow row;
  if (!find_row(p, token, static_cast<int>(blockIdx.y), row)) return;
  const T* const q = static_cast<const T*>(p.q) + token * p.q_stride + int64_t{row.head} * head_dim;
  for (int d = static_cast<int>(threadIdx.x); d < head_dim; d += kPlainThreads) s.query[d] = to_float(q[d]);
  __syncthreads();
  float out[kOwn] = {}, max = -INFINITY, sum = 0.0f;
  const int end = (row.end + kSplitKeys - 1) / kSplitKeys;
  for (int first = row.begin / kSplitKeys; first < end; first += kWarps) {
    attend_split<T, kColumns>(p, s, row, first + static_cast<int>(threadIdx.x) / 32);
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) {
      const MergeFactors factors = merge_factors(max, sum, s.max[w], s.sum[w]);
      max = factors.max;
      sum = merge(factors, sum, s.sum[w]);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const int d = i * kPlainThreads + static_cast<int>(threadIdx.x);
        if (d < head_dim) out[i] = merge(factors, out[i], s.out[w][d]);
      }
    }
    __syncthreads();
  }
  const float sink = p.sinks != nullptr ? p.sinks[row.head] : 0.0f;
  const float factor = final_factor(max, sum, p.sinks != nullptr, sink);
  T* const to = static_cast<T*>(p.out) + token * p.out_stride + int64_t{row.head} * head_dim;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int d = i * kPlainThreads + static_cast<int>(threadIdx.x);
    if (d < head_dim) from_float(__fadd_rn(__fmul_rn(out[i], factor), 0.0f), to[d]);
  }
}

template <typename T, int kColumns>
void launch_plain(const PagedAttentionParams& p, Stream stream) {
  const dim3 grid(static_cast<unsigned>(p.num_tokens), static_cast<unsigned>(p.num_heads));
  simt::launch<plain_kernel<T, kColumns>>(
      {.grid = grid, .block = dim3(kPlainThreads), .shared_bytes = sizeof(PlainShared), .stream = stream, .pdl = true},
      PlainArgs{p});
}

template <typename T>
void launch_plain_of_size(const PagedAttentionParams& p, Stream stream) {
  if (p.kv.head_dim <= 64) return launch_plain<T, 2>(p, stream);
  if (p.kv.head_dim <= 256) return launch_plain<T, 8>(p, stream);
  launch_plain<T, kMaxColumns>(p, stream);
}

}  // namespace

void attend_plain(const PagedAttentionParams& p, Stream stream) {
  switch (p.dtype) {
    case DType::f32:
      return launch_plain_of_size<float>(p, stream);
    case DType::f16:
      return launch_plain_of_size<__half>(p, stream);
    default:
      return launch_plain_of_size<__nv_bfloat16>(p, stream);
  }
}

}  // namespace quire::cuda
