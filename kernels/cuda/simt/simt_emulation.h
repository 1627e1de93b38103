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

#define QUIRE_SIMT_VECTOR2(T, name)    \
  struct alignas(2 * sizeof(T)) name { \
    T x, y;                            \
  };                                   \
  inline name make_##name(T x, T y) { return {x, y}; }
#define QUIRE_SIMT_VECTOR4(T, name)                              \
  struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name { \
    T x, y, z, w;                                                \
  };                                                             \
  inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }
QUIRE_SIMT_VECTOR2(float, float2)
QUIRE_SIMT_VECTOR2(int, int2)
QUIRE_SIMT_VECTOR2(unsigned, uint2)
QUIRE_SIMT_VECTOR2(unsigned short, ushort2)
QUIRE_SIMT_VECTOR4(float, float4)
QUIRE_SIMT_VECTOR4(int, int4)
QUIRE_SIMT_VECTOR4(unsigned, uint4)
QUIRE_SIMT_VECTOR4(unsigned short, ushort4)
QUIRE_SIMT_VECTOR4(unsigned char, uchar4)
#undef QUIRE_SIMT_VECTOR2
#undef QUIRE_SIMT_VECTOR4

using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;

inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t __float_as_uint(float value) { return std::bit_cast<uint32_t>(value); }
inline int __popc(uint32_t x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<uint32_t>(x)); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
inline uint32_t __brev(uint32_t x) {
  uint32_t reversed = 0;
  for (int i = 0; i < 32; i++) reversed |= (x >> i & 1) << (31 - i);
  return reversed;
}
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  uint32_t picked = 0;
  for (int i = 0; i < 4; i++) picked |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return picked;
}

// The hardware's approximations are rounded differently; nothing may depend on their last bits.
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline int __float2int_rn(float x) { return static_cast<int>(rintf(x)); }
inline float __uint2float_rn(uint32_t x) { return static_cast<float>(x); }

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) : bits(value == value ? quire::float_to_bf16(value) : uint16_t{0x7fff}) {}
  operator float() const { return quire::bf16_to_float(bits); }
};
struct __half {
  uint16_t bits;
  __half() = default;
  __half(float value) : bits(value == value ? quire::float_to_f16(value) : uint16_t{0x7fff}) {}
  operator float() const {
    // Exact, subnormals too: scale by 2^112 what lies in the wrong place of the exponent.
    const float scaled = __uint_as_float((bits & 0x7fffu) << 13) * 0x1p112f;
    const uint32_t magnitude =
        (bits & 0x7c00u) == 0x7c00u ? __float_as_uint(scaled) | 0x7f800000u : __float_as_uint(scaled);
    return __uint_as_float(magnitude | (bits & 0x8000u) << 16);
  }
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct alignas(4) __half2 {
  __half x, y;
};
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
inline size_t max_shared_bytes() { return size_t{227} << 10; }

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

template <typename T>
T shuffle(uint32_t mask, T value, int source, const char* name, Loc loc) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
  struct Record {
    T value, result;
    int source;
  } record{value, value, source};
  warp_collective(
      mask, name, &record,
      [](void* const* records) {
        for (int lane = 0; lane < 32; lane++) {
          auto* const own = static_cast<Record*>(records[lane]);
          if (!own) continue;
          const auto* const other = static_cast<const Record*>(records[own->source]);
          own->result = other ? other->value : undefined_value<T>();
        }
      },
      loc);
  return record.result;
}

// All lanes bring a value and get what Reduce makes of them, in the order of the lanes.
template <typename T, typename Reduce>
T lane_reduce(uint32_t mask, T value, const char* name, Loc loc) {
  warp_collective(
      mask, name, &value,
      [](void* const* records) {
        T result{};
        bool first = true;
        for (int lane = 0; lane < 32; lane++) {
          if (!records[lane]) continue;
          const T other = *static_cast<const T*>(records[lane]);
          result = first ? other : Reduce()(result, other);
          first = false;
        }
        for (int lane = 0; lane < 32; lane++) {
          if (records[lane]) *static_cast<T*>(records[lane]) = result;
        }
      },
      loc);
  return value;
}

// For each lane the set of lanes whose value equals its own.
inline uint32_t equal_lanes(uint32_t mask, uint64_t value, const char* name, Loc loc) {
  struct Record {
    uint64_t value;
    uint32_t result;
  } record{value, 0};
  warp_collective(
      mask, name, &record,
      [](void* const* records) {
        for (int lane = 0; lane < 32; lane++) {
          auto* const own = static_cast<Record*>(records[lane]);
          for (int other = 0; own && other < 32; other++) {
            if (records[other] && static_cast<Record*>(records[other])->value == own->value) own->result |= 1u << other;
          }
        }
      },
      loc);
  return record.result;
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
inline int __syncthreads_or(int p, QUIRE_SIMT_LOC) {
  return static_cast<int>(quire::simt::barrier(0, 0, true, p != 0, loc).any);
}
inline int __syncthreads_and(int p, QUIRE_SIMT_LOC) {
  return static_cast<int>(quire::simt::barrier(0, 0, true, p != 0, loc).all);
}
inline int __syncthreads_count(int p, QUIRE_SIMT_LOC) {
  return static_cast<int>(quire::simt::barrier(0, 0, true, p != 0, loc).count);
}
inline void __syncwarp(uint32_t mask = ~0u, QUIRE_SIMT_LOC) {
  quire::simt::warp_collective(mask, "__syncwarp", nullptr, nullptr, loc);
}

template <typename T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, QUIRE_SIMT_LOC) {
  const int lane = static_cast<int>(quire::simt::thread_index() % 32), first = lane & ~(width - 1);
  return quire::simt::shuffle(mask, value, first | (source & (width - 1)), "__shfl_sync", loc);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, QUIRE_SIMT_LOC) {
  const int lane = static_cast<int>(quire::simt::thread_index() % 32), source = lane ^ bits;
  return quire::simt::shuffle(mask, value, source < (lane & ~(width - 1)) + width ? source : lane, "__shfl_xor_sync",
                              loc);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, QUIRE_SIMT_LOC) {
  const int lane = static_cast<int>(quire::simt::thread_index() % 32), source = lane - static_cast<int>(delta);
  return quire::simt::shuffle(mask, value, source >= (lane & ~(width - 1)) ? source : lane, "__shfl_up_sync", loc);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32, QUIRE_SIMT_LOC) {
  const int lane = static_cast<int>(quire::simt::thread_index() % 32), source = lane + static_cast<int>(delta);
  return quire::simt::shuffle(mask, value, source < (lane & ~(width - 1)) + width ? source : lane, "__shfl_down_sync",
                              loc);
}

inline uint32_t __ballot_sync(uint32_t mask, int p, QUIRE_SIMT_LOC) {
  const uint32_t bit = p ? 1u << quire::simt::thread_index() % 32 : 0;
  return quire::simt::lane_reduce<uint32_t, std::bit_or<>>(mask, bit, "__ballot_sync", loc);
}
inline int __any_sync(uint32_t mask, int p, QUIRE_SIMT_LOC) {
  return quire::simt::lane_reduce<int, std::bit_or<>>(mask, p != 0, "__any_sync", loc);
}
inline int __all_sync(uint32_t mask, int p, QUIRE_SIMT_LOC) {
  return quire::simt::lane_reduce<int, std::bit_and<>>(mask, p != 0, "__all_sync", loc);
}
template <typename T>
uint32_t __match_any_sync(uint32_t mask, T value, QUIRE_SIMT_LOC) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return quire::simt::equal_lanes(mask, bits, "__match_any_sync", loc);
}
template <typename T>
T __reduce_add_sync(uint32_t mask, T value, QUIRE_SIMT_LOC) {
  return quire::simt::lane_reduce<T, std::plus<>>(mask, value, "__reduce_add_sync", loc);
}
template <typename T>
T __reduce_max_sync(uint32_t mask, T value, QUIRE_SIMT_LOC) {
  struct Max {
    T operator()(T a, T b) const { return a < b ? b : a; }
  };
  return quire::simt::lane_reduce<T, Max>(mask, value, "__reduce_max_sync", loc);
}
template <typename T>
T __reduce_min_sync(uint32_t mask, T value, QUIRE_SIMT_LOC) {
  struct Min {
    T operator()(T a, T b) const { return b < a ? b : a; }
  };
  return quire::simt::lane_reduce<T, Min>(mask, value, "__reduce_min_sync", loc);
}
template <typename T>
T __reduce_or_sync(uint32_t mask, T value, QUIRE_SIMT_LOC) {
  return quire::simt::lane_reduce<T, std::bit_or<>>(mask, value, "__reduce_or_sync", loc);
}

inline void __threadfence() {}
template <typename T>
T __ldg(const T* address, QUIRE_SIMT_LOC) {
  quire::simt::check_aligned(address, alignof(T), "__ldg", loc);
  return *address;
}
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
  return quire::simt::atomic_update(address, [=](T old) { return old < value ? value : old; }, loc);
}
template <typename T>
T atomicMin(T* address, std::type_identity_t<T> value, QUIRE_SIMT_LOC) {
  return quire::simt::atomic_update(address, [=](T old) { return value < old ? value : old; }, loc);
}
template <typename T>
T atomicOr(T* address, std::type_identity_t<T> value, QUIRE_SIMT_LOC) {
  return quire::simt::atomic_update(address, [=](T old) { return old | value; }, loc);
}
template <typename T>
T atomicAnd(T* address, std::type_identity_t<T> value, QUIRE_SIMT_LOC) {
  return quire::simt::atomic_update(address, [=](T old) { return old & value; }, loc);
}
template <typename T>
T atomicExch(T* address, std::type_identity_t<T> value, QUIRE_SIMT_LOC) {
  return quire::simt::atomic_update(address, [=](T) { return value; }, loc);
}
template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value, QUIRE_SIMT_LOC) {
  return quire::simt::atomic_update(address, [=](T old) { return old == expected ? value : old; }, loc);
}
#undef QUIRE_SIMT_LOC
