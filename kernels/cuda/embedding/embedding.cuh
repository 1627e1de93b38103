// out[t] (+)= scale * table[token_ids[t] + offset] + position_table[positions[t] + offset]
//
// Grid: x = token, y = piece of 1,024 elements. Block: 128 threads of 8 elements each. The packed table is row-major
// (gemm/weight_layout.h) with padded rows, so a thread loads its 8 elements as 16-byte pieces without a bound; the
// stores are 16 bytes too where the row of `out` allows it. Nothing is shared, there is no barrier.
// Bytes: dim x (table element + output element) a token: 24 KB at 4,096 in f32. Limit: launch time up to some hundred
// tokens, then bandwidth.
#pragma once

#include <cstdint>

#include "cuda/simt/simt.h"

namespace quire::cuda {

constexpr int kEmbeddingThreads = 128;
constexpr int kEmbeddingElements = 8;  // of a thread

struct EmbeddingArgs {
  const int32_t* token_ids;
  const int32_t* positions;
  const void* table;
  const void* position_table;  // or null
  void* out;
  int64_t out_stride;
  int32_t token_id_offset;
  int32_t position_offset;
  int32_t dim;
  int32_t padded_dim;
  float scale;
  int32_t part_rows;  // of a table that is a part; 0: it is all
  bool accumulate;
  bool rounds;       // out has the table's element type
  bool out_aligned;  // rows of out start at 16 bytes
};

__device__ __forceinline__ void unpack(const float* from, float (&x)[kEmbeddingElements]) {
#pragma unroll
  for (int i = 0; i < kEmbeddingElements; i += 4) {
    const auto four = *reinterpret_cast<const float4*>(from + i);
    x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
  }
}
__device__ __forceinline__ float low_half(uint32_t word, const __nv_bfloat16*) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float low_half(uint32_t word, const __half*) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xffffu)));
}
template <typename Element>
__device__ __forceinline__ void unpack(const Element* from, float (&x)[kEmbeddingElements]) {
  const auto words = *reinterpret_cast<const uint4*>(from);
  const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < kEmbeddingElements; ++i) x[i] = low_half(pairs[i / 2] >> (i % 2 * 16), from);
}

__device__ __forceinline__ uint32_t bits_of(float x, const __nv_bfloat16*) {
  return __bfloat16_as_ushort(__float2bfloat16(x));
}
__device__ __forceinline__ uint32_t bits_of(float x, const __half*) { return __half_as_ushort(__float2half(x)); }

// The first `count` of 8 floats.
__device__ __forceinline__ void store_floats(const EmbeddingArgs& p, float* out, const float (&x)[kEmbeddingElements],
                                             int count) {
  if (p.out_aligned && count >= kEmbeddingElements) {
#pragma unroll
    for (int i = 0; i < kEmbeddingElements; i += 4) {
      auto* to = reinterpret_cast<float4*>(out + i);
      const float4 old = p.accumulate ? *to : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      *to = p.accumulate ? make_float4(old.x + x[i], old.y + x[i + 1], old.z + x[i + 2], old.w + x[i + 3])
                         : make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kEmbeddingElements; ++i) {
    if (i < count) out[i] = p.accumulate ? out[i] + x[i] : x[i];
  }
}

template <typename Element>
__device__ __forceinline__ void store_rounded(const EmbeddingArgs& p, Element* out,
                                              const float (&x)[kEmbeddingElements], int count) {
  if constexpr (sizeof(Element) == 2) {
    uint32_t bits[kEmbeddingElements];
#pragma unroll
    for (int i = 0; i < kEmbeddingElements; ++i) bits[i] = bits_of(x[i], out);
    if (p.out_aligned && count >= kEmbeddingElements) {
      *reinterpret_cast<uint4*>(out) = make_uint4(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16,
                                                  bits[4] | bits[5] << 16, bits[6] | bits[7] << 16);
      return;
    }
    auto* to = reinterpret_cast<uint16_t*>(out);
#pragma unroll
    for (int i = 0; i < kEmbeddingElements; ++i) {
      if (i < count) to[i] = static_cast<uint16_t>(bits[i]);
    }
  }
}

template <typename Element>
__global__ void __launch_bounds__(kEmbeddingThreads) embedding_kernel(const __grid_constant__ EmbeddingArgs p) {
  const int64_t token = blockIdx.x;
  const int k = static_cast<int>(blockIdx.y * kEmbeddingThreads + threadIdx.x) * kEmbeddingElements;
  if (k >= p.dim) return;
  simt::grid_dependency_launch();
  simt::grid_dependency_wait();
  const int64_t row = static_cast<int64_t>(p.token_ids[token]) + p.token_id_offset;
  float x[kEmbeddingElements];
  if (p.part_rows > 0 && (row < 0 || row >= p.part_rows)) {
#pragma unroll
    for (int i = 0; i < kEmbeddingElements; ++i) x[i] = 0.0f;
  } else {
    unpack(static_cast<const Element*>(p.table) + row * p.padded_dim + k, x);
  }
#pragma unroll
  for (int i = 0; i < kEmbeddingElements; ++i) x[i] = __fmul_rn(x[i], p.scale);
  if (p.position_table != nullptr) {
    const int64_t position = static_cast<int64_t>(p.positions[token]) + p.position_offset;
    float y[kEmbeddingElements];
    unpack(static_cast<const Element*>(p.position_table) + position * p.padded_dim + k, y);
#pragma unroll
    for (int i = 0; i < kEmbeddingElements; ++i) x[i] = __fadd_rn(x[i], y[i]);
  }
  const int64_t at = token * p.out_stride + k;
  if (p.rounds) {
    store_rounded(p, static_cast<Element*>(p.out) + at, x, p.dim - k);
  } else {
    store_floats(p, static_cast<float*>(p.out) + at, x, p.dim - k);
  }
}

}  // namespace quire::cuda
