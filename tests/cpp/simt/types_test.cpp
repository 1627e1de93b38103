// 16-bit types, bit tricks, atomics and loads.
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "simt/orders.h"

namespace quire::simt {
namespace {

// The nearest number of `mantissa_bits` and its exponent range, by double arithmetic, ties to even.
double nearest(double value, int mantissa_bits, int least_exponent, double limit) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), least_exponent);
  const double step = std::ldexp(1.0, exponent - mantissa_bits);
  const double rounded = std::nearbyint(value / step) * step;
  return std::abs(rounded) >= limit ? std::copysign(std::numeric_limits<double>::infinity(), value) : rounded;
}

TEST(Types, SixteenBitNumbersRoundToNearestEven) {
  uint32_t bits = 1;
  for (int i = 0; i < 300000; i++) {
    bits = bits * 1664525u + 1013904223u;
    const float value = __uint_as_float(bits);
    if (std::isnan(value)) continue;
    ASSERT_EQ(__bfloat162float(__float2bfloat16_rn(value)), static_cast<float>(nearest(value, 7, -126, 0x1p128)))
        << value;
    const float small = std::ldexp(value, static_cast<int>(bits >> 8 & 15) - std::ilogb(value) - 10);
    for (const float x : {value, small}) {
      ASSERT_EQ(__half2float(__float2half_rn(x)), static_cast<float>(nearest(x, 10, -14, 65536))) << x;
    }
  }
}

TEST(Types, EverySixteenBitPatternSurvives) {
  for (uint32_t bits = 0; bits < 65536; bits++) {
    const auto short_bits = static_cast<unsigned short>(bits);
    const float h = __half2float(__ushort_as_half(short_bits)), b = __bfloat162float(__ushort_as_bfloat16(short_bits));
    if (std::isnan(h)) {
      EXPECT_GT(bits & 0x7fff, 0x7c00u);
      EXPECT_TRUE(std::isnan(__half2float(__float2half(h))));
    } else {
      EXPECT_EQ(__half_as_ushort(__float2half(h)), bits);
    }
    if (!std::isnan(b)) {
      EXPECT_EQ(__bfloat16_as_ushort(__float2bfloat16(b)), bits);
    }
  }
  EXPECT_EQ(__half2float(__ushort_as_half(0x0001)), 0x1p-24f);
  EXPECT_EQ(__half2float(__ushort_as_half(0x3555)), 0.333251953125f);
  EXPECT_EQ(__half2float(__ushort_as_half(0xfbff)), -65504.0f);
  EXPECT_TRUE(std::isnan(__bfloat162float(__float2bfloat16(NAN))));
}

TEST(Types, BitTricks) {
  EXPECT_EQ(__popc(0xf0f0u), 8);
  EXPECT_EQ(__ffs(0), 0);
  EXPECT_EQ(__ffs(24), 4);
  EXPECT_EQ(__umulhi(0xffffffffu, 0xffffffffu), 0xfffffffeu);
  EXPECT_EQ(sizeof(float4), 16u);
  EXPECT_EQ(alignof(uint4), 16u);
  EXPECT_EQ(alignof(__half2), 4u);
}

struct AtomicArgs {
  uint32_t* u;  // add, max, or
  float* f;
};

__global__ void atomic_kernel(const __grid_constant__ AtomicArgs p) {
  const uint32_t t = blockIdx.x * blockDim.x + threadIdx.x;
  auto& s = block_shared<std::array<int, 4>>();
  if (threadIdx.x < 4) s[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&s[t % 4], 1);
  __syncthreads();
  if (threadIdx.x < 4) atomicAdd(p.u, static_cast<uint32_t>(s[threadIdx.x]));
  atomicMax(p.u + 1, t ^ 5);
  atomicOr(p.u + 2, 1u << t % 32);
  if (atomicAdd(p.u + 3, 1u) == gridDim.x * blockDim.x - 1) p.u[4] = 1;
  atomicAdd(p.f, 0.5f);
}

TEST(Types, Atomics) {
  in_every_order([] {
    std::vector<uint32_t> u(5);
    float f = 0;
    launch<atomic_kernel>({.grid = dim3(3), .block = dim3(64), .shared_bytes = 16}, AtomicArgs{u.data(), &f});
    EXPECT_EQ(u[0], 192u);
    EXPECT_EQ(u[1], 191u);
    EXPECT_EQ(u[2], ~0u);
    EXPECT_EQ(u[4], 1u) << "one thread is told that it was the last";
    EXPECT_EQ(f, 96.0f);
  });
}

struct LoadArgs {
  const uint4* in;
  uint4* out;
};

__global__ void load_kernel(const __grid_constant__ LoadArgs p) {
  grid_dependency_wait();
  p.out[threadIdx.x] = load_streaming(p.in + threadIdx.x);
  p.out[threadIdx.x + 32] = __ldcg(p.in + threadIdx.x);
  grid_dependency_launch();
}

TEST(Types, Loads) {
  std::vector<uint4> in(32), out(64);
  for (uint32_t i = 0; i < 32; i++) in[i] = {i, i, i, i};
  launch<load_kernel>({.grid = dim3(1), .block = dim3(32), .pdl = true}, LoadArgs{in.data(), out.data()});
  for (uint32_t i = 0; i < 64; i++) EXPECT_EQ(out[i].z, i % 32);
}

}  // namespace
}  // namespace quire::simt
