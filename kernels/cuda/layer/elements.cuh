// Elements of float32 and the 16-bit types as float registers, several with one access of 4, 8 or 16 bytes.
#pragma once

#include "cuda/simt/simt.h"

namespace quire::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

__device__ inline void from_float(float x, float& out) { out = x; }
__device__ inline void from_float(float x, __nv_bfloat16& out) { out = __float2bfloat16_rn(x); }
__device__ inline void from_float(float x, __half& out) { out = __float2half_rn(x); }

// What one access moves.
template <int kBytes>
struct AccessOf;
template <>
struct AccessOf<2> {
  using type = uint16_t;
};
template <>
struct AccessOf<4> {
  using type = uint32_t;
};
template <>
struct AccessOf<8> {
  using type = uint2;
};
template <>
struct AccessOf<16> {
  using type = uint4;
};

// kCount elements from an address that is a multiple of their size, or of 16.
template <typename T, int kCount>
__device__ inline void load_elements(const T* from, float (&out)[kCount]) {
  constexpr int kBytes = sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16;
  constexpr int kStep = kBytes / sizeof(T);
  using Access = typename AccessOf<kBytes>::type;
#pragma unroll
  for (int i = 0; i < kCount; i += kStep) {
    const Access bits = *reinterpret_cast<const Access*>(from + i);
    T elements[kStep];
    memcpy(static_cast<void*>(elements), &bits, kBytes);
#pragma unroll
    for (int j = 0; j < kStep; ++j) out[i + j] = to_float(elements[j]);
  }
}

template <typename T, int kCount>
__device__ inline void store_elements(const float (&values)[kCount], T* to) {
  constexpr int kBytes = sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16;
  constexpr int kStep = kBytes / sizeof(T);
  using Access = typename AccessOf<kBytes>::type;
#pragma unroll
  for (int i = 0; i < kCount; i += kStep) {
    T elements[kStep];
#pragma unroll
    for (int j = 0; j < kStep; ++j) from_float(values[i + j], elements[j]);
    Access bits;
    memcpy(&bits, static_cast<const void*>(elements), kBytes);
    *reinterpret_cast<Access*>(to + i) = bits;
  }
}

// On the host: whether elements of `bytes` together may be accessed at `pointer`.
inline bool is_aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

}  // namespace quire::cuda
