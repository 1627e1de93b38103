// Tensor-core and copy primitives. Fragments are filled from matrices by the layouts of the PTX manual, written here a
// second time from the manual's formulas, and products are compared with double precision.
#include <array>
#include <cmath>
#include <random>
#include <vector>

#include "simt/orders.h"

namespace quire::simt {
namespace {

template <typename Acc>
struct MmaArgs {
  const uint32_t* a;  // a lane's registers one after the other
  const uint32_t* b;
  Acc* d;
};

template <int K, typename Acc, typename Tag>
__global__ void mma_kernel(const __grid_constant__ MmaArgs<Acc> p) {
  uint32_t a[4], b[2];
  Acc d[4];
  for (int i = 0; i < 4; i++) a[i] = p.a[threadIdx.x * 4 + i], d[i] = p.d[threadIdx.x * 4 + i];
  for (int i = 0; i < 2; i++) b[i] = p.b[threadIdx.x * 2 + i];
  if constexpr (K == 16) {
    mma_m16n8k16(d, a, b, Tag());
  } else {
    mma_m16n8k32(d, a, b, Tag());
  }
  for (int i = 0; i < 4; i++) p.d[threadIdx.x * 4 + i] = d[i];
}

// encode: a number's bits and the value they stand for.
template <int K, typename Acc, typename Tag, typename Encode>
void check_mma(Encode encode) {
  constexpr int kBits = 256 / K;
  std::mt19937 random(11);
  double a[16][K], b[K][8], d[16][8];
  std::vector<uint32_t> a_registers(128), b_registers(64);
  std::vector<Acc> d_registers(128);
  for (int lane = 0; lane < 32; lane++) {
    const int group = lane >> 2, in_group = lane % 4;
    // PTX: for a_i: row = group for registers 0, 2, else group + 8; col = (in_group * E) + (i & (E - 1)), + K / 2 for
    // the upper two registers, E elements a register.
    constexpr int kElements = 32 / kBits;
    for (int i = 0; i < 4 * kElements; i++) {
      const int reg = i / kElements, row = reg % 2 == 0 ? group : group + 8;
      const int col = in_group * kElements + i % kElements + (reg < 2 ? 0 : K / 2);
      const auto [bits, value] = encode(random);
      a_registers[static_cast<size_t>(lane * 4 + reg)] |= bits << i % kElements * kBits;
      a[row][col] = value;
    }
    for (int i = 0; i < 2 * kElements; i++) {
      const int reg = i / kElements, row = in_group * kElements + i % kElements + (reg < 1 ? 0 : K / 2);
      const auto [bits, value] = encode(random);
      b_registers[static_cast<size_t>(lane * 2 + reg)] |= bits << i % kElements * kBits;
      b[row][group] = value;
    }
    for (int i = 0; i < 4; i++) {
      const int row = i < 2 ? group : group + 8, col = in_group * 2 + (i & 1);
      d[row][col] = static_cast<double>(static_cast<Acc>(lane * 4 + i));
      d_registers[static_cast<size_t>(lane * 4 + i)] = static_cast<Acc>(lane * 4 + i);
    }
  }
  launch<mma_kernel<K, Acc, Tag>>({.grid = dim3(1), .block = dim3(32)},
                                  MmaArgs<Acc>{a_registers.data(), b_registers.data(), d_registers.data()});
  for (int lane = 0; lane < 32; lane++) {
    for (int i = 0; i < 4; i++) {
      const int row = (lane >> 2) + (i < 2 ? 0 : 8), col = lane % 4 * 2 + (i & 1);
      double expected = d[row][col], magnitude = std::abs(expected);
      for (int k = 0; k < K; k++) {
        expected += a[row][k] * b[k][col];
        magnitude += std::abs(a[row][k] * b[k][col]);
      }
      EXPECT_NEAR(static_cast<double>(d_registers[static_cast<size_t>(lane * 4 + i)]), expected, magnitude * 1e-6);
    }
  }
}

TEST(TensorCore, Mma) {
  struct Number {
    uint32_t bits;
    double value;
  };
  in_every_order([] {
    const auto real = [](auto& random) { return static_cast<float>(random() % 2001) / 1000.0f - 1.0f; };
    check_mma<16, float, bf16_tag>([&](auto& random) {
      const __nv_bfloat16 x = real(random);
      return Number{__bfloat16_as_ushort(x), __bfloat162float(x)};
    });
    check_mma<16, float, f16_tag>([&](auto& random) {
      const __half x = real(random);
      return Number{__half_as_ushort(x), __half2float(x)};
    });
    check_mma<32, int32_t, s8_tag>([](auto& random) {
      const int x = static_cast<int>(random() % 256) - 128;
      return Number{static_cast<uint32_t>(x) & 0xff, static_cast<double>(x)};
    });
    check_mma<32, float, e4m3_tag>([](auto& random) {
      uint32_t bits = random() % 256;
      if ((bits & 0x7f) == 0x7f) bits = 0;  // NaN
      const int exponent = static_cast<int>(bits >> 3 & 15), mantissa = static_cast<int>(bits & 7);
      const double value = exponent ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
      return Number{bits, bits & 0x80 ? -value : value};
    });
  });
}

struct MatrixArgs {
  uint16_t* in;   // four 8x8 matrices
  uint32_t* out;  // the registers of each lane
  bool trans;
};

struct alignas(16) MatrixSmem {
  uint16_t in[256];
  uint16_t back[256];
};

template <int N, bool Trans>
__device__ void load(const uint16_t* in, uint32_t* out) {
  uint32_t r[N];
  // Lanes beyond the last matrix may name anything.
  const uint16_t* const row = threadIdx.x < N * 8 ? in + threadIdx.x * 8 : nullptr;
  ldmatrix<Trans>(r, row);
  for (int i = 0; i < N; i++) out[threadIdx.x * 4 + i] = r[i];
}

template <int N>
__global__ void matrix_kernel(const __grid_constant__ MatrixArgs p) {
  auto& s = block_shared<MatrixSmem>();
  for (int i = 0; i < 8; i++) s.in[threadIdx.x * 8 + i] = p.in[threadIdx.x * 8 + i];
  __syncthreads();
  p.trans ? load<N, true>(s.in, p.out) : load<N, false>(s.in, p.out);
  if constexpr (N == 4) {
    const uint32_t r[4] = {p.out[threadIdx.x * 4], p.out[threadIdx.x * 4 + 1], p.out[threadIdx.x * 4 + 2],
                           p.out[threadIdx.x * 4 + 3]};
    stmatrix_x4(s.back + threadIdx.x * 8, r);
    __syncwarp();
    for (int i = 0; i < 8; i++) p.in[threadIdx.x * 8 + i] = s.back[threadIdx.x * 8 + i];
  }
}

template <int N>
void check_matrices(bool trans) {
  std::vector<uint16_t> in(256);
  for (size_t i = 0; i < 256; i++) in[i] = static_cast<uint16_t>(i * 251);
  const auto original = in;
  std::vector<uint32_t> out(128);
  launch<matrix_kernel<N>>({.grid = dim3(1), .block = dim3(32), .shared_bytes = sizeof(MatrixSmem)},
                           MatrixArgs{in.data(), out.data(), trans});
  for (size_t lane = 0; lane < 32; lane++) {
    for (size_t i = 0; i < N; i++) {
      for (size_t e = 0; e < 2; e++) {
        const size_t row = lane / 4, col = lane % 4 * 2 + e;
        const size_t at = i * 64 + (trans ? col * 8 + row : row * 8 + col);
        EXPECT_EQ(out[lane * 4 + i] >> 16 * e & 0xffff, original[at]);
        if (N == 4) {
          EXPECT_EQ(in[i * 64 + row * 8 + col], original[at]) << "stmatrix undoes ldmatrix";
        }
      }
    }
  }
}

TEST(TensorCore, LdmatrixAndStmatrix) {
  in_every_order([] {
    for (const bool trans : {false, true}) {
      check_matrices<1>(trans);
      check_matrices<2>(trans);
      check_matrices<4>(trans);
    }
  });
}

struct CopyArgs {
  const uint4* in;
  uint4* out;
  int n;  // rows of 16 bytes a thread; the last is not valid
};

// Three groups under way; what has not been waited for is looked at too, and must be NaN.
__global__ void copy_kernel(const __grid_constant__ CopyArgs p) {
  auto& s = block_shared<std::array<std::array<uint4, 64>, 4>>();
  const unsigned t = threadIdx.x;
  for (int i = 0; i < p.n + 2; i++) {
    if (i < p.n)
      cp_async16(&s[static_cast<size_t>(i % 4)][t], p.in + (i + 1 < p.n ? i * 64 + t : 1u << 30), i + 1 < p.n);
    cp_async_commit();
    if (i < 2) continue;
    if (i < p.n && s[static_cast<size_t>(i % 4)][t].x != ~0u) fail("landed too early", Loc::current());
    cp_async_wait<2>();
    __syncthreads();
    p.out[(i - 2) * 64 + static_cast<int>(t)] = s[static_cast<size_t>((i - 2) % 4)][t ^ 33];
    __syncthreads();
  }
}

TEST(TensorCore, CopiesLandWhenTheyAreWaitedFor) {
  in_every_order([] {
    constexpr int kRows = 7;
    std::vector<uint4> in(64 * kRows), out(64 * kRows);
    for (uint32_t i = 0; i < in.size(); i++) in[i] = {i, i * 3, i * 5, i * 7};
    launch<copy_kernel>({.grid = dim3(1), .block = dim3(64), .shared_bytes = 4096},
                        CopyArgs{in.data(), out.data(), kRows});
    for (uint32_t i = 0; i < out.size(); i++) {
      const uint32_t from = i / 64 + 1 < kRows ? i ^ 33 : 0;  // what is not valid is zero
      EXPECT_EQ(out[i].x, from);
      EXPECT_EQ(out[i].w, from * 7);
    }
  });
}

}  // namespace
}  // namespace quire::simt
