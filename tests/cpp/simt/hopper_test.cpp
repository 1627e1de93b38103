// hopper.h against plain loops, one test per instruction in all thread orders; and one test per mistake, which must be
// caught: by an error that names it, or by NaN in the result in every order.
#include "cuda/simt/hopper.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "simt/orders.h"

namespace quire {
namespace {

using simt::Major;
using simt::Mbarrier;
using simt::Swizzle;
using simt::TensorMap;
using simt::TensorMapSpec;

// ThreadSanitizer reports planted races as what they are.
#ifdef __SANITIZE_THREAD__
constexpr bool kReportsRaces = true;
#else
constexpr bool kReportsRaces = false;
#endif

using simt::error_of;
using simt::in_every_order;

float some_value(size_t i) { return static_cast<float>(static_cast<int>((i * 2654435761u >> 7) % 33) - 16) / 8.0f; }

std::vector<uint16_t> some_values(size_t count, bool is_f16 = false) {
  std::vector<uint16_t> values(count);
  for (size_t i = 0; i < count; ++i) {
    values[i] = is_f16 ? float_to_f16(some_value(i)) : float_to_bf16(some_value(i));
  }
  return values;
}

TensorMapSpec matrix_spec(const void* base, uint64_t rows, uint64_t cols, uint32_t box_rows, uint32_t box_cols,
                          Swizzle swizzle, DType dtype = DType::bf16) {
  return {.base = base,
          .dtype = dtype,
          .rank = 2,
          .dims = {cols, rows},
          .strides = {0, cols * dtype_bytes(dtype)},
          .box = {box_cols, box_rows},
          .swizzle = swizzle};
}

// ---- mbarrier: a ring of kStages filled by one thread and read by all others --------------------------------------

constexpr int kStages = 3, kItems = 11;

struct RingArgs {
  int* out;
  bool waits_for_empty;
  bool waits_for_full;
};

struct RingSmem {
  int stage[kStages];
  Mbarrier full[kStages], empty[kStages];
};

__global__ void ring_kernel(const __grid_constant__ RingArgs p) {
  auto& s = simt::block_shared<RingSmem>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      simt::mbarrier_init(s.full[i], 1);
      simt::mbarrier_init(s.empty[i], blockDim.x - 32);
    }
    simt::mbarrier_fence_init();
  }
  __syncthreads();
  for (int i = 0; i < kItems; ++i) {
    const int stage = i % kStages;
    const uint32_t parity = i / kStages & 1;
    if (threadIdx.x == 0) {
      if (p.waits_for_empty) simt::mbarrier_wait(s.empty[stage], parity ^ 1);
      s.stage[stage] = 100 + i;
      simt::mbarrier_arrive(s.full[stage]);
    } else if (threadIdx.x >= 32) {
      if (p.waits_for_full) simt::mbarrier_wait(s.full[stage], parity);
      p.out[(threadIdx.x - 32) * kItems + i] = s.stage[stage];
      simt::mbarrier_arrive(s.empty[stage]);
    }
  }
}

std::vector<int> run_ring(bool waits_for_empty, bool waits_for_full = true) {
  std::vector<int> out(96 * kItems, -1);
  simt::launch<ring_kernel>({.grid = dim3(1), .block = dim3(128), .shared_bytes = sizeof(RingSmem)},
                            RingArgs{out.data(), waits_for_empty, waits_for_full});
  return out;
}

bool ring_is_right(const std::vector<int>& out) {
  for (size_t i = 0; i < out.size(); ++i) {
    if (out[i] != 100 + static_cast<int>(i) % kItems) return false;
  }
  return true;
}

TEST(Mbarrier, RingInAllOrders) {
  in_every_order([] { EXPECT_TRUE(ring_is_right(run_ring(true))); });
}

TEST(Mbarrier, CatchesStageReusedTooEarly) {
  if (kReportsRaces) GTEST_SKIP();
  const std::string error = error_of([] {
    if (!ring_is_right(run_ring(false))) throw std::runtime_error("wrong values");
  });
  EXPECT_NE(error, "");
  EXPECT_TRUE(ring_is_right(run_ring(true)));  // and the engine goes on
}

TEST(Mbarrier, CatchesMissingWaitForFull) {
  if (kReportsRaces) GTEST_SKIP();
  simt::set_order(simt::Order::reverse);
  const std::string error = error_of([] {
    if (!ring_is_right(run_ring(true, false))) throw std::runtime_error("wrong values");
  });
  EXPECT_NE(error, "");
  simt::set_order(simt::Order::forward);
}

__global__ void uninitialised_kernel(const __grid_constant__ RingArgs) {
  simt::mbarrier_arrive(simt::block_shared<RingSmem>().full[0]);
}

TEST(Mbarrier, CatchesUseBeforeInit) {
  const auto launch = [] {
    simt::launch<uninitialised_kernel>({.grid = dim3(1), .block = dim3(32), .shared_bytes = sizeof(RingSmem)},
                                       RingArgs{});
  };
  const std::string error = error_of(launch);
  EXPECT_NE(error.find("before mbarrier_init"), std::string::npos) << error;
  EXPECT_NE(error.find("hopper_test.cpp"), std::string::npos) << error;
}

__global__ void crowded_kernel(const __grid_constant__ RingArgs) {
  auto& s = simt::block_shared<RingSmem>();
  simt::mbarrier_init(s.full[0], 1);
  simt::mbarrier_arrive_expect_tx(s.full[0], 64);  // the phase stays open until the bytes land
  simt::mbarrier_arrive(s.full[0]);
}

TEST(Mbarrier, CatchesTooManyArrivals) {
  const std::string error = error_of([] {
    simt::launch<crowded_kernel>({.grid = dim3(1), .block = dim3(1), .shared_bytes = sizeof(RingSmem)}, RingArgs{});
  });
  EXPECT_NE(error.find("too many arrivals"), std::string::npos) << error;
}

// ---- TMA -----------------------------------------------------------------------------------------------------------

struct TmaArgs {
  TensorMap from;
  int at[5];
  uint32_t bytes;
  unsigned char* raw;  // the tile as it lies in shared memory
  bool waits;
  int misplaced;
};

struct TmaSmem {
  alignas(1024) unsigned char tile[16384];
  Mbarrier landed;
};

template <int kRank>
__global__ void tma_kernel(const __grid_constant__ TmaArgs p) {
  auto& s = simt::block_shared<TmaSmem>();
  if (threadIdx.x == 0) {
    simt::mbarrier_init(s.landed, 1);
    simt::mbarrier_fence_init();
  }
  __syncthreads();
  int at[kRank];
  for (int i = 0; i < kRank; ++i) at[i] = p.at[i];
  if (threadIdx.x == 13) {
    simt::prefetch_tensor_map(p.from);
    simt::mbarrier_arrive_expect_tx(s.landed, p.bytes);
    simt::tma_load(s.tile + p.misplaced, p.from, s.landed, at);
  }
  if (p.waits) simt::mbarrier_wait(s.landed, 0);
  for (uint32_t i = threadIdx.x; i < p.bytes; i += blockDim.x) p.raw[i] = s.tile[i];
  __syncthreads();
  if (!p.waits) simt::mbarrier_wait(s.landed, 0);
}

template <int kRank>
std::vector<unsigned char> run_tma(const TensorMapSpec& spec, const std::vector<int>& at, bool waits = true,
                                   int misplaced = 0) {
  TmaArgs args{};
  args.from = simt::make_tensor_map(spec);
  args.bytes = static_cast<uint32_t>(dtype_bytes(spec.dtype));
  for (int i = 0; i < kRank; ++i) {
    args.bytes *= spec.box[i];
    args.at[i] = at[static_cast<size_t>(i)];
  }
  std::vector<unsigned char> raw(args.bytes);
  args.raw = raw.data();
  args.waits = waits;
  args.misplaced = misplaced;
  simt::launch<tma_kernel<kRank>>({.grid = dim3(1), .block = dim3(64), .shared_bytes = sizeof(TmaSmem)}, args);
  return raw;
}

// The swizzle as the manual's figures show it: piece of 16 bytes i of line r lies at i ^ f(r), lines of 128 bytes.
uint32_t swizzled_byte(uint32_t byte, Swizzle swizzle) {
  const uint32_t line = byte / 128 % 8, piece = byte / 16 % 8;
  const uint32_t key = swizzle == Swizzle::b128 ? line : swizzle == Swizzle::b64 ? line % 4 : line % 2;
  return swizzle == Swizzle::none ? byte : byte / 128 * 128 + (piece ^ key) * 16 + byte % 16;
}

TEST(Tma, EverySwizzle) {
  for (const Swizzle swizzle : {Swizzle::none, Swizzle::b32, Swizzle::b64, Swizzle::b128}) {
    const uint32_t line = static_cast<uint32_t>(swizzle) / 2;  // elements
    TensorMapSpec spec{.dtype = DType::f16, .rank = 4, .dims = {2 * line, 9, 3, 5}, .swizzle = swizzle};
    spec.strides[1] = 2 * line * 2;
    spec.strides[2] = spec.strides[1] * 9;
    spec.strides[3] = spec.strides[2] * 3;
    uint32_t box[4] = {line, 8, 2, 2};
    std::copy(box, box + 4, spec.box);
    alignas(16) static uint16_t data[2 * 64 * 9 * 3 * 5];
    for (size_t i = 0; i < std::size(data); ++i) data[i] = static_cast<uint16_t>(i + 1);
    spec.base = data;
    in_every_order([&] {
      const std::vector<int> at = {static_cast<int>(line), -2, 2, 3};  // rows -2 and -1, heads 3 are outside
      const std::vector<unsigned char> raw = run_tma<4>(spec, at);
      for (uint32_t i = 0; i < raw.size() / 2; ++i) {
        const uint64_t x = line + i % line, y = uint64_t{i / line % 8} - 2, z = 2 + i / line / 8 % 2;
        const uint64_t w = 3 + i / line / 16;
        const bool inside = y < 9 && z < 3 && w < 5;
        const uint64_t element = ((w * 3 + z) * 9 + y) * 2 * line + x;
        uint16_t got;
        std::memcpy(&got, raw.data() + swizzled_byte(i * 2, swizzle), 2);
        ASSERT_EQ(got, inside ? data[element] : 0) << i;
      }
    });
  }
}

template <int kRank>
void check_first_box() {
  static const std::vector<uint16_t> data = some_values(64 * 6 * 6 * 6 * 6);
  TensorMapSpec spec{.base = data.data(), .rank = kRank, .swizzle = Swizzle::b128};
  uint64_t elements = 1;
  for (int i = 0; i < kRank; ++i) {
    spec.dims[i] = i == 0 ? 64 : 6;
    spec.box[i] = i == 0 ? 64 : 2;
    spec.strides[i] = elements * 2;
    elements *= spec.dims[i];
  }
  const std::vector<int> at = {0, 3, 2, 1, 4};
  const std::vector<unsigned char> raw = run_tma<kRank>(spec, at);
  for (uint32_t i = 0; i < raw.size() / 2; ++i) {
    uint64_t element = i % 64;
    for (int d = 1; d < kRank; ++d) {
      const uint64_t coordinate = static_cast<uint64_t>(at[static_cast<size_t>(d)]) + (i / 64 >> (d - 1)) % 2;
      element += coordinate * spec.strides[d] / 2;
    }
    uint16_t got;
    std::memcpy(&got, raw.data() + swizzled_byte(i * 2, Swizzle::b128), 2);
    ASSERT_EQ(got, data[element]) << i;
  }
}

TEST(Tma, RanksTwoToFive) {
  in_every_order([] {
    check_first_box<2>();
    check_first_box<3>();
    check_first_box<4>();
    check_first_box<5>();
  });
}

TEST(Tma, CatchesMissingWait) {
  if (kReportsRaces) GTEST_SKIP();
  const std::vector<uint16_t> data(64 * 8, uint16_t{0x3f80});
  in_every_order([&] {
    const auto raw = run_tma<2>(matrix_spec(data.data(), 8, 64, 8, 64, Swizzle::b128), {0, 0}, false);
    EXPECT_EQ(raw[0], 0xFF);  // NaN: the bytes had not landed
    EXPECT_EQ(raw.back(), 0xFF);
  });
}

TEST(Tma, CatchesMisplacedTileAndWrongMaps) {
  const std::vector<uint16_t> data(64 * 8);
  const auto spec = matrix_spec(data.data(), 8, 64, 8, 64, Swizzle::b128);
  const std::string error = error_of([&] { run_tma<2>(spec, {0, 0}, true, 128); });
  EXPECT_NE(error.find("aligned"), std::string::npos) << error;
  EXPECT_NE(error_of([&] { run_tma<3>(spec, {0, 0, 0}); }).find("rank"), std::string::npos);
  const auto refused = [](TensorMapSpec wrong) { return error_of([&] { simt::make_tensor_map(wrong); }) != ""; };
  TensorMapSpec wrong = spec;
  EXPECT_FALSE(refused(wrong));
  wrong.strides[1] = 136;
  EXPECT_TRUE(refused(wrong));
  wrong = spec;
  wrong.base = data.data() + 1;
  EXPECT_TRUE(refused(wrong));
  wrong = spec;
  wrong.box[1] = 257;
  EXPECT_TRUE(refused(wrong));
  wrong = spec;
  wrong.swizzle = Swizzle::b64;  // a line of 128 bytes
  EXPECT_TRUE(refused(wrong));
  wrong = spec;
  wrong.dtype = DType::f32;
  EXPECT_NE(error_of([&] { simt::make_tensor_map(wrong); }).find("tensor map of float32"), std::string::npos);
}

// ---- wgmma: d[64][N] = c + A[64][64] B[64][N]
// ------------------------------------------------------------------------

enum class Bug { none, no_fence, two_fences, warp_returns, waits_too_little, writes_early, bad_address };

struct WgmmaArgs {
  TensorMap a;
  TensorMap b;
  const uint16_t* a_values;  // [64][64], for A in registers
  const float* c;            // [64][N]
  float* d;
  uint32_t b_panels, a_panels;
  Bug bug;
};

struct WgmmaSmem {
  alignas(1024) unsigned char a[64 * 64 * 2];
  alignas(1024) unsigned char b[256 * 64 * 2];
  Mbarrier landed;
};

constexpr uint32_t line_of(int columns) { return columns % 128 == 0 ? 64 : columns % 32 == 0 ? 32 : 16; }
constexpr Swizzle swizzle_of(uint32_t line) { return static_cast<Swizzle>(line * 2); }

// A tile is panels one line wide. K-major: panels follow each other along k, `rows` lines each.
template <Swizzle kSwizzle>
__device__ uint64_t k_major_at(const unsigned char* tile, uint32_t rows, uint32_t k) {
  constexpr uint32_t kLine = static_cast<uint32_t>(kSwizzle);
  const uint32_t panel = k * 2 / kLine;
  return simt::advance(simt::matrix_descriptor<Major::k, kSwizzle>(tile + panel * rows * kLine), k * 2 % kLine);
}

template <typename Tag, int kColumns, Major kAMajor, Major kBMajor, bool kRegisters>
__global__ void wgmma_kernel(const __grid_constant__ WgmmaArgs p) {
  auto& s = simt::block_shared<WgmmaSmem>();
  constexpr uint32_t kLine = line_of(kColumns);  // of B
  constexpr Swizzle kSwizzle = swizzle_of(kLine);
  if (threadIdx.x == 0) {
    simt::mbarrier_init(s.landed, 1);
    simt::mbarrier_fence_init();
    simt::mbarrier_arrive_expect_tx(s.landed, 64 * 64 * 2 + kColumns * 64 * 2);
    simt::tma_load(s.a, p.a, s.landed, {0, 0});
    constexpr uint32_t kLines = kBMajor == Major::k ? kColumns : 64;
    for (uint32_t i = 0; i < p.b_panels; ++i) {
      simt::tma_load(s.b + i * kLines * kLine * 2, p.b, s.landed, {static_cast<int>(i * kLine), 0});
    }
  }
  __syncthreads();
  simt::mbarrier_wait(s.landed, 0);
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4, column = lane % 4 * 2;
  float d[kColumns / 2];
  for (int i = 0; i < kColumns / 2; ++i) {
    d[i] = p.c[(row + (i >> 1 & 1) * 8) * kColumns + (i >> 2) * 8 + column + (i & 1)];
  }
  uint32_t a[4][4];
  for (int i = 0; i < 16; ++i) {
    const uint16_t* from = p.a_values + (row + (i & 1) * 8) * 64 + i / 4 * 16 + (i >> 1 & 1) * 8 + column;
    a[i / 4][i % 4] = from[0] | static_cast<uint32_t>(from[1]) << 16;
  }
  if (p.bug == Bug::warp_returns && threadIdx.x >= 96) return;
  if (p.bug == Bug::two_fences && threadIdx.x >= 96) {
    simt::wgmma_fence();
  } else if (p.bug != Bug::no_fence) {
    simt::wgmma_fence();
  }
  for (uint32_t k = 0; k < 64; k += 16) {
    uint64_t db = kBMajor == Major::k
                      ? k_major_at<kSwizzle>(s.b, kColumns, k)
                      : simt::advance(simt::matrix_descriptor<Major::mn, kSwizzle>(s.b, 64 * kLine * 2), k * kLine * 2);
    if (p.bug == Bug::bad_address) db = simt::advance(db, 60000);
    if constexpr (kRegisters) {
      simt::wgmma<Tag, kColumns, kBMajor>(d, a[k / 16], db, true);
    } else {
      const uint64_t da = kAMajor == Major::k ? k_major_at<Swizzle::b128>(s.a, 64, k)
                                              : simt::advance(simt::matrix_descriptor<Major::mn>(s.a), k * 128);
      simt::wgmma<Tag, kColumns, kBMajor, kAMajor>(d, da, db, true);
    }
  }
  simt::wgmma_commit();
  if (p.bug == Bug::writes_early) d[3] *= 2.0f;
  if (p.bug == Bug::waits_too_little) {
    simt::wgmma_wait<1>();
  } else {
    simt::wgmma_wait<0>();
  }
  simt::keep_registers(d);
  for (int i = 0; i < kColumns / 2; ++i) {
    p.d[(row + (i >> 1 & 1) * 8) * kColumns + (i >> 2) * 8 + column + (i & 1)] = d[i];
  }
}

template <typename Tag, int kColumns, Major kAMajor, Major kBMajor, bool kRegisters>
std::vector<float> run_wgmma(Bug bug = Bug::none, double* worst = nullptr) {
  constexpr bool kIsF16 = std::is_same_v<Tag, simt::f16_tag>;
  const DType dtype = kIsF16 ? DType::f16 : DType::bf16;
  const std::vector<uint16_t> a = some_values(64 * 64, kIsF16), b = some_values(64 * kColumns, kIsF16);
  std::vector<float> c(64 * kColumns), d(64 * kColumns);
  for (size_t i = 0; i < c.size(); ++i) c[i] = some_value(i + 5);
  WgmmaArgs args{};
  constexpr uint32_t kLine = line_of(kColumns);
  args.a = simt::make_tensor_map(matrix_spec(a.data(), 64, 64, 64, 64, Swizzle::b128, dtype));
  if (kBMajor == Major::k) {  // b is [N][64]
    args.b = simt::make_tensor_map(matrix_spec(b.data(), kColumns, 64, kColumns, kLine, swizzle_of(kLine), dtype));
    args.b_panels = 64 / kLine;
  } else {  // b is [64][N]
    args.b = simt::make_tensor_map(matrix_spec(b.data(), 64, kColumns, 64, kLine, swizzle_of(kLine), dtype));
    args.b_panels = kColumns / kLine;
  }
  args.a_values = a.data();
  args.c = c.data();
  args.d = d.data();
  args.bug = bug;
  simt::launch<wgmma_kernel<Tag, kColumns, kAMajor, kBMajor, kRegisters>>(
      {.grid = dim3(1), .block = dim3(128), .shared_bytes = sizeof(WgmmaSmem)}, args);
  const auto value = [](const std::vector<uint16_t>& from, int i) {
    const uint16_t bits = from[static_cast<size_t>(i)];
    return double{kIsF16 ? f16_to_float(bits) : bf16_to_float(bits)};
  };
  for (int i = 0; worst != nullptr && i < 64 * kColumns; ++i) {
    const int m = i / kColumns, n = i % kColumns;
    double expected = c[static_cast<size_t>(i)];
    for (int k = 0; k < 64; ++k) {
      expected += value(a, kAMajor == Major::k ? m * 64 + k : k * 64 + m) *
                  value(b, kBMajor == Major::k ? n * 64 + k : k * kColumns + n);
    }
    const double error = std::abs(expected - d[static_cast<size_t>(i)]);
    *worst = error <= *worst ? *worst : error;  // NaN wins
  }
  return d;
}

template <typename Tag, int kColumns>
void check_wgmma() {
  SCOPED_TRACE(kColumns);
  double worst = 0.0;
  run_wgmma<Tag, kColumns, Major::k, Major::k, false>(Bug::none, &worst);
  run_wgmma<Tag, kColumns, Major::k, Major::mn, false>(Bug::none, &worst);
  run_wgmma<Tag, kColumns, Major::mn, Major::mn, false>(Bug::none, &worst);
  run_wgmma<Tag, kColumns, Major::k, Major::k, true>(Bug::none, &worst);
  run_wgmma<Tag, kColumns, Major::k, Major::mn, true>(Bug::none, &worst);
  EXPECT_LE(worst, 1e-4);
}

template <typename Tag>
void check_all_columns() {
  check_wgmma<Tag, 64>();
  check_wgmma<Tag, 80>();
  check_wgmma<Tag, 128>();
  check_wgmma<Tag, 256>();
}

TEST(Wgmma, Bf16AgainstLoops) { in_every_order(&check_all_columns<simt::bf16_tag>); }
TEST(Wgmma, F16AgainstLoops) { in_every_order(&check_all_columns<simt::f16_tag>); }

TEST(Wgmma, CatchesMistakes) {
  if (kReportsRaces) GTEST_SKIP();
  const auto run = [](Bug bug) {
    return error_of([bug] { run_wgmma<simt::bf16_tag, 64, Major::k, Major::k, false>(bug); });
  };
  in_every_order([&] {
    EXPECT_NE(run(Bug::no_fence).find("wgmma_fence"), std::string::npos);
    EXPECT_NE(run(Bug::two_fences).find("divergent wgmma_fence: "), std::string::npos);
    EXPECT_NE(run(Bug::warp_returns).find("returned"), std::string::npos);
    EXPECT_NE(run(Bug::writes_early).find("before the wait"), std::string::npos);
    EXPECT_NE(run(Bug::bad_address).find("outside of shared memory"), std::string::npos);
    EXPECT_EQ(run(Bug::none), "");
    for (const float x : run_wgmma<simt::bf16_tag, 64, Major::k, Major::k, false>(Bug::waits_too_little)) {
      ASSERT_TRUE(std::isnan(x));
    }
  });
}

}  // namespace
}  // namespace quire
