// What happens between the QKV projection and attention, in one pass over its output: RMSNorm of each query and key
// head, rotary embedding, and the write of keys and values into their pages.
//
//   x' = x / sqrt(mean(x^2) + eps) * weight;  (a, b) -> (a cos - b sin, b cos + a sin) for the pairs of a head
//
// Mapping: grid (token, group of heads), blocks of 128; a head belongs to lanes_per_head neighbouring lanes (a power of
// two up to 32), so a warp holds one to 32 heads. A lane's unit is two runs of kVec elements that are rotated with each
// other, (i, i + rotary_dim / 2), or each in itself where pairs are neighbours; elements that are not rotated come in
// units too. kVec is 16 bytes' worth where shape and alignment allow it, else 1. head_dim 128 in 16 bits: 8 lanes a
// head, two 16-byte loads a lane, 1 KB in flight a warp. A lane reads and writes the elements of its own units alone,
// so q is rotated in place without a barrier; nothing is shared but the sum of squares (shuffles among the lanes of a
// head, halving distance). With head norms the elements are loaded twice, the second time from L1. A token of slot -1
// keeps its query alone. A head's bits depend on its elements and position only. Limit: bytes. (heads + 2 kv_heads) *
// head_dim elements read and as many written a token, at 6 flops an element; the table of cosines is read once a token
// from L2 and then from L1.
#pragma once

#include "cuda/attention/kv_layout.h"
#include "cuda/layer/elements.cuh"
#include "params/rope.h"

namespace quire::cuda {

constexpr int kRopeThreads = 128;

struct RopeArgs {
  RopeKvWriteParams params;
  int32_t first_head = 0;      // num_heads when queries stay as they are
  int32_t lanes_per_head = 1;  // a power of two, at most 32
  int32_t num_units = 0;       // of a head
};

struct RopeUnit {
  int first, second;  // where its runs of kVec elements start; second may lie beyond the head
  int angle;          // of the first pair of elements
  bool is_rotated;    // across
};

template <int kVec>
__device__ inline RopeUnit rope_unit(const RopeKvWriteParams& p, int unit) {
  if (p.interleaved) {
    const int first = 2 * unit * kVec;
    return {first, first + kVec, unit * kVec, kVec == 1 && first < p.rotary_dim};
  }
  const int half = p.rotary_dim / 2;
  const int rotated = half / kVec;
  if (unit < rotated) return {unit * kVec, unit * kVec + half, unit * kVec, true};
  const int first = p.rotary_dim + 2 * (unit - rotated) * kVec;
  return {first, first + kVec, 0, false};
}

// Pairs (first[i], second[i]).
template <int kVec>
__device__ inline void rotate_across(const float* cosines, const float* sines, float (&first)[kVec],
                                     float (&second)[kVec]) {
  float c[kVec], s[kVec];
  load_elements(cosines, c);
  load_elements(sines, s);
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const float a = first[i], b = second[i];
    first[i] = a * c[i] - b * s[i];
    second[i] = b * c[i] + a * s[i];
  }
}

// Pairs (x[2 i], x[2 i + 1]).
template <int kVec>
__device__ inline void rotate_within(const float* cosines, const float* sines, float (&x)[kVec]) {
  float c[kVec / 2], s[kVec / 2];
  load_elements(cosines, c);
  load_elements(sines, s);
#pragma unroll
  for (int i = 0; i < kVec / 2; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * c[i] - b * s[i];
    x[2 * i + 1] = b * c[i] + a * s[i];
  }
}

// 1 / sqrt(mean(x^2) + eps) of the head that this lane shares. All lanes of the warp come here; is_needed is false for
// heads without a norm, which get 1.
template <typename T, int kVec>
__device__ inline float head_norm_factor(const RopeArgs& args, const T* head, int lane, bool is_needed) {
  const RopeKvWriteParams& p = args.params;
  float sum = 0.0f;
  for (int u = lane; is_needed && u < args.num_units; u += args.lanes_per_head) {
    const RopeUnit unit = rope_unit<kVec>(p, u);
    float x[kVec];
    load_elements(head + unit.first, x);
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum += x[i] * x[i];
    if (unit.second >= p.kv.head_dim) continue;
    load_elements(head + unit.second, x);
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum += x[i] * x[i];
  }
  for (int offset = args.lanes_per_head / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  return is_needed ? rsqrtf(sum / static_cast<float>(p.kv.head_dim) + p.norm_eps) : 1.0f;
}

template <typename T, int kVec>
__device__ inline void load_normed(const T* head, const float* weight, float factor, int at, float (&out)[kVec]) {
  load_elements(head + at, out);
  if (weight == nullptr) return;
  float w[kVec];
  load_elements(weight + at, w);
#pragma unroll
  for (int i = 0; i < kVec; ++i) out[i] = out[i] * factor * w[i];
}

// Reads unit u of a head, norms and rotates it, and writes it to `to` (which may be the head itself). cosines is null
// when the head is not rotated.
template <typename T, int kVec>
__device__ inline void move_unit(const RopeKvWriteParams& p, int u, const T* head, const float* weight, float factor,
                                 const float* cosines, T* to) {
  const RopeUnit unit = rope_unit<kVec>(p, u);
  const bool has_second = unit.second < p.kv.head_dim;
  float first[kVec], second[kVec] = {};
  load_normed(head, weight, factor, unit.first, first);
  if (has_second) load_normed(head, weight, factor, unit.second, second);
  if (cosines != nullptr) {
    const float* sines = cosines + p.rotary_dim / 2;
    if (unit.is_rotated) rotate_across(cosines + unit.angle, sines + unit.angle, first, second);
    if constexpr (kVec > 1) {
      if (p.interleaved && unit.first < p.rotary_dim) {
        rotate_within(cosines + unit.first / 2, sines + unit.first / 2, first);
      }
      if (p.interleaved && unit.second < p.rotary_dim) {
        rotate_within(cosines + unit.second / 2, sines + unit.second / 2, second);
      }
    }
  }
  store_elements(first, to + unit.first);
  if (has_second) store_elements(second, to + unit.second);
}

template <typename T, int kVec>
__global__ void __launch_bounds__(kRopeThreads) rope_kv_write_kernel(const __grid_constant__ RopeArgs args) {
  const RopeKvWriteParams& p = args.params;
  simt::grid_dependency_wait();
  simt::grid_dependency_launch();
  const int64_t token = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % args.lanes_per_head;
  const int heads_per_block = kRopeThreads / args.lanes_per_head;
  const int h = args.first_head + static_cast<int>(blockIdx.y) * heads_per_block +
                static_cast<int>(threadIdx.x) / args.lanes_per_head;
  const int first_value = p.num_heads + p.kv.num_kv_heads;
  const bool is_query = h < p.num_heads, is_key = !is_query && h < first_value;
  const int32_t slot = is_query ? 0 : p.slot_mapping[token];
  const bool is_idle = h >= first_value + p.kv.num_kv_heads || slot < 0;
  T* head = static_cast<T*>(p.qkv) + token * p.qkv_stride + int64_t{h} * p.kv.head_dim;
  const float* weight = is_query ? p.q_norm : is_key ? p.k_norm : nullptr;
  float factor = 1.0f;
  if (p.q_norm != nullptr || p.k_norm != nullptr) {
    factor = head_norm_factor<T, kVec>(args, head, lane, weight != nullptr && !is_idle);
  }
  if (is_idle) return;
  const bool is_rotated = p.rotary_dim > 0 && (is_query || is_key);
  const float* cosines = is_rotated ? p.cos_sin + int64_t{p.positions[token]} * p.rotary_dim : nullptr;
  T* to = head;
  if (!is_query) {
    const int kv_head = h - (is_key ? p.num_heads : first_value);
    to = static_cast<T*>(is_key ? p.kv.k : p.kv.v) + kv_offset(slot / p.kv.block_size, kv_head, slot % p.kv.block_size,
                                                               p.kv.num_kv_heads, p.kv.block_size, p.kv.head_dim);
  }
  for (int u = lane; u < args.num_units; u += args.lanes_per_head) {
    move_unit<T, kVec>(p, u, head, weight, factor, cosines, to);
  }
}

}  // namespace quire::cuda
