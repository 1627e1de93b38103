// The g++ side of simt.h: CUDA's keywords, vector and 16-bit types, thread functions and launch. Included by simt.h.
#pragma once

#include <math.h>  // the global names of the C functions, as CUDA has them

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/dtype.h"
#include "cuda/simt/engine.h"
#include "params/stream.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))

template <typename T>
struct alignas(2 * sizeof(T)) QuireVector2 {
  T x, y;
};
template <typename T>
struct alignas(4 * sizeof(T)) QuireVector4 {
  T x, y, z, w;
};
using float2 = QuireVector2<float>;
using float4 = QuireVector4<float>;
using uint2 = QuireVector2<unsigned>;
using uint4 = QuireVector4<unsigned>;
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;

inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t __float_as_uint(float value) { return std::bit_cast<uint32_t>(value); }
inline int __popc(uint32_t x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }

// The hardware's approximations are rounded differently; nothing may depend on their last bits.
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __uint2float_rn(uint32_t x) { return static_cast<float>(x); }

template <uint16_t (*kEncode)(float), float (*kDecode)(uint16_t)>
struct QuireFloat16 {
  uint16_t bits;
  QuireFloat16() = default;
  QuireFloat16(float value) : bits(value == value ? kEncode(value) : uint16_t{0x7fff}) {}  // CUDA has one NaN
  operator float() const { return kDecode(bits); }
};
using __nv_bfloat16 = QuireFloat16<quire::float_to_bf16, quire::bf16_to_float>;
using __half = QuireFloat16<quire::float_to_f16, quire::f16_to_float>;
using __nv_bfloat162 = QuireVector2<__nv_bfloat16>;
using __half2 = QuireVector2<__half>;
inline float __bfloat162float(__nv_bfloat16 value) { return value; }
inline __nv_bfloat16 __float2bfloat16(float value) { return value; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return std::bit_cast<__nv_bfloat16>(bits); }
inline float __half2float(__half value) { return value; }
inline __half __float2half(float value) { return value; }
inline __half __float2half_rn(float value) { return value; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __half __ushort_as_half(unsigned short bits) { return std::bit_cast<__half>(bits); }

namespace quire::simt {

inline constexpr const char* kBackendName = "simt";
inline constexpr bool kIsEmulated = true;

struct LaunchConfig {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  Stream stream = {};
  bool pdl = false;
};

template <auto Kernel, typename Args>
void launch(const LaunchConfig& config, const Args& args) {
  static_assert(std::is_trivially_copyable_v<Args>);
  const auto body = [](const void* p) { Kernel(*static_cast<const Args*>(p)); };
  const LaunchHook hook = config.stream.handle ? launch_hook.load() : nullptr;
  if (hook) {
    return hook(config.stream.handle, {config.grid, config.block, config.shared_bytes, body, &args, sizeof(Args),
                                       alignof(Args), __PRETTY_FUNCTION__});
  }
  run_grid(config.grid, config.block, config.shared_bytes, body, &args);
}

inline int current_device() { return 0; }
inline int num_multiprocessors() { return 3; }  // few, so that persistent blocks meet several pieces of work
inline size_t max_shared_bytes() { return kMaxSharedBytes; }

template <typename T>
T& block_shared(Loc loc = Loc::current()) {
  check_shared(shared_memory(), sizeof(T), 1, "block_shared", loc);
  return *reinterpret_cast<T*>(shared_memory());
}

inline void named_barrier_sync(int id, int threads, Loc loc = Loc::current()) {
  barrier(id, static_cast<unsigned>(threads), true, false, loc);
}
inline void named_barrier_arrive(int id, int threads, Loc loc = Loc::current()) {
  barrier(id, static_cast<unsigned>(threads), false, false, loc);
}
inline void grid_dependency_wait() {}
inline void grid_dependency_launch() {}

inline float exp2_approx(float x) { return exp2f(x); }

inline uint4 load_streaming(const uint4* address, Loc loc = Loc::current()) {
  check_aligned(address, 16, "load_streaming", loc);
  return *address;
}

// What a lane reads from one that takes no part.
template <typename T>
T undefined_value() {
  T value;
  std::memset(static_cast<void*>(&value), 0xFF, sizeof value);
  return value;
}

inline int lane() { return static_cast<int>(thread_index() % 32); }

// What the lane `source` brought, or the own value where that lies behind the own segment of width lanes.
template <typename T>
T shuffle(uint32_t mask, T value, int source, int width, const char* name, Loc loc) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
  struct Record {
    T value, result;
    int source;
  } record{value, value, source < (lane() & -width) + width ? source : lane()};
  collective(mask, name, &record, loc, [](Records<Record> records) {
    for (size_t i = 0; i < 32; i++) {
      if (!records[i]) continue;
      const Record* const other = records[static_cast<size_t>(records[i]->source)];
      records[i]->result = other ? other->value : undefined_value<T>();
    }
  });
  return record.result;
}

// All lanes bring a value and get what combine makes of them; a value that comes twice must not matter.
template <typename T, typename Combine>
T lane_reduce(uint32_t mask, T value, const char* name, Loc loc, Combine combine) {
  collective(mask, name, &value, loc, [&](Records<T> records) {
    T result = value;
    for (size_t i = 0; i < 32; i++) {
      if (records[i]) result = combine(result, *records[i]);
    }
    for (size_t i = 0; i < 32; i++) {
      if (records[i]) *records[i] = result;
    }
  });
  return value;
}

template <typename T, typename Update>
T atomic_update(T* address, Update update, Loc loc) {
  check_aligned(address, sizeof(T), "atomic", loc);
  const std::atomic_ref<T> target(*address);
  T old = target.load(std::memory_order_relaxed);
  while (!target.compare_exchange_weak(old, update(old), std::memory_order_relaxed)) {
  }
  return old;
}

}  // namespace quire::simt

#define QUIRE_SIMT_LOC quire::simt::Loc loc = quire::simt::Loc::current()
inline void __syncthreads(QUIRE_SIMT_LOC) { quire::simt::barrier(0, 0, true, false, loc); }
inline int __syncthreads_or(int p, QUIRE_SIMT_LOC) { return quire::simt::barrier(0, 0, true, p != 0, loc); }
inline void __syncwarp(uint32_t mask = ~0u, QUIRE_SIMT_LOC) {
  quire::simt::collective(1, mask, "__syncwarp", nullptr, nullptr, loc);
}

template <typename T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, QUIRE_SIMT_LOC) {
  const int first = quire::simt::lane() & -width;
  return quire::simt::shuffle(mask, value, first + (source & (width - 1)), width, "__shfl_sync", loc);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, QUIRE_SIMT_LOC) {
  return quire::simt::shuffle(mask, value, quire::simt::lane() ^ bits, width, "__shfl_xor_sync", loc);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, QUIRE_SIMT_LOC) {
  const int lane = quire::simt::lane(), down = static_cast<int>(delta);
  return quire::simt::shuffle(mask, value, lane % width < down ? lane : lane - down, width, "__shfl_up_sync", loc);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32, QUIRE_SIMT_LOC) {
  const int source = quire::simt::lane() + static_cast<int>(delta);
  return quire::simt::shuffle(mask, value, source, width, "__shfl_down_sync", loc);
}

inline uint32_t __ballot_sync(uint32_t mask, int p, QUIRE_SIMT_LOC) {
  const uint32_t bit = uint32_t{p != 0} << quire::simt::lane();
  return quire::simt::lane_reduce(mask, bit, "__ballot_sync", loc, std::bit_or<uint32_t>());
}
inline int __any_sync(uint32_t mask, int p, QUIRE_SIMT_LOC) {
  return quire::simt::lane_reduce(mask, p != 0, "__any_sync", loc, std::logical_or<bool>());
}
inline int __all_sync(uint32_t mask, int p, QUIRE_SIMT_LOC) {
  return quire::simt::lane_reduce(mask, p != 0, "__all_sync", loc, std::logical_and<bool>());
}
template <typename T>
T __reduce_max_sync(uint32_t mask, T value, QUIRE_SIMT_LOC) {
  return quire::simt::lane_reduce(mask, value, "__reduce_max_sync", loc, [](T a, T b) { return std::max(a, b); });
}
// For each lane the set of lanes whose value equals its own.
template <typename T>
uint32_t __match_any_sync(uint32_t mask, T value, QUIRE_SIMT_LOC) {
  static_assert(std::is_integral_v<T>);
  struct Record {
    T value;
    uint32_t equal;
  } record{value, 0};
  quire::simt::collective(mask, "__match_any_sync", &record, loc, [](quire::simt::Records<Record> records) {
    for (size_t i = 0; i < 32; i++) {
      for (size_t j = 0; records[i] && j < 32; j++) {
        if (records[j] && records[j]->value == records[i]->value) records[i]->equal |= 1u << j;
      }
    }
  });
  return record.equal;
}

inline void __threadfence() {}
template <typename T>
T __ldcg(const T* address, QUIRE_SIMT_LOC) {
  quire::simt::check_aligned(address, alignof(T), "__ldcg", loc);
  return *address;
}
template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value, QUIRE_SIMT_LOC) {
  return quire::simt::atomic_update(address, [=](T old) { return static_cast<T>(old + value); }, loc);
}
template <typename T>
T atomicMax(T* address, std::type_identity_t<T> value, QUIRE_SIMT_LOC) {
  return quire::simt::atomic_update(address, [=](T old) { return std::max(old, value); }, loc);
}
template <typename T>
T atomicOr(T* address, std::type_identity_t<T> value, QUIRE_SIMT_LOC) {
  return quire::simt::atomic_update(address, [=](T old) { return old | value; }, loc);
}
#undef QUIRE_SIMT_LOC
