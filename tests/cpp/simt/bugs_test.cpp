// One kernel a class of bug, each of which the emulation must catch by itself: by an error that names the line, by NaN,
// or by results that differ between orders. What only a sanitizer sees is in planted_bugs.cpp.
#include <array>
#include <cmath>
#include <functional>
#include <vector>

#include "simt/orders.h"

namespace quire::simt {
namespace {

struct Args {
  float* x;
  int n = 0;
};

using Block = std::array<float, 128>;
struct alignas(16) Tiles {
  std::array<std::array<float, 128>, 2> stage;
};
const LaunchConfig kOneBlock{.grid = dim3(1), .block = dim3(128), .shared_bytes = sizeof(Tiles)};

// Works after whatever happened before.
__global__ void sound_kernel(const __grid_constant__ Args p) {
  auto& s = block_shared<Block>();
  s[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  p.x[threadIdx.x] = __shfl_xor_sync(~0u, s[127 - threadIdx.x], 1);
}

template <auto Kernel>
std::string error_of_kernel() {
  std::vector<float> x(256, 0.0f);
  const std::string error = error_of([&] { launch<Kernel>(kOneBlock, Args{x.data(), 100}); });
  launch<sound_kernel>(kOneBlock, Args{x.data()});
  for (int i = 0; i < 128; i++) EXPECT_EQ(x[static_cast<size_t>(i)], static_cast<float>((127 - i) ^ 1));
  return error;
}

#define EXPECT_CAUGHT(kernel, ...)                                                                            \
  in_every_order([] {                                                                                         \
    const std::string error = error_of_kernel<kernel>();                                                      \
    for (const std::string& part : std::vector<std::string>{__VA_ARGS__}) {                                   \
      EXPECT_NE(error.find(part), std::string::npos) << "expected \"" << part << "\" in \"" << error << "\""; \
    }                                                                                                         \
  })
std::string here(int line) { return "bugs_test.cpp:" + std::to_string(line); }

// ThreadSanitizer reports these kernels as what they are; see planted_bugs.cpp.
#if defined(__SANITIZE_THREAD__)
#define SKIP_IF_RACES_ARE_REPORTED() GTEST_SKIP() << "a race on purpose"
#else
#define SKIP_IF_RACES_ARE_REPORTED() static_cast<void>(0)
#endif

// The bytes that a kernel leaves, in each order.
template <auto Kernel>
std::vector<std::vector<float>> results() {
  std::vector<std::vector<float>> all;
  in_every_order([&] {
    std::vector<float> x(256);
    for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(i);
    launch<Kernel>(kOneBlock, Args{x.data(), 5});
    all.push_back(x);
  });
  return all;
}

bool nan_or_different(const std::vector<std::vector<float>>& all) {
  for (const auto& x : all) {
    if (x != all[0]) return true;  // NaN differs from itself
  }
  return all[0] != all[0];
}

__global__ void missing_barrier_kernel(const __grid_constant__ Args p) {
  auto& s = block_shared<Block>();
  s[threadIdx.x] = p.x[threadIdx.x];
  p.x[threadIdx.x] = s[threadIdx.x ^ 64];
}

TEST(Bugs, MissingBarrierAfterWriting) {
  SKIP_IF_RACES_ARE_REPORTED();
  EXPECT_TRUE(nan_or_different(results<missing_barrier_kernel>()));
}

__global__ void missing_loop_barrier_kernel(const __grid_constant__ Args p) {
  auto& s = block_shared<Block>();
  float sum = 0;
  for (int i = 0; i < p.n; i++) {
    s[threadIdx.x] = p.x[threadIdx.x] * static_cast<float>(i);
    __syncthreads();
    sum += s[127 - threadIdx.x];  // and the next round overwrites it
  }
  p.x[threadIdx.x + 128] = sum;
}

TEST(Bugs, MissingBarrierAtTheEndOfALoop) {
  SKIP_IF_RACES_ARE_REPORTED();
  EXPECT_TRUE(nan_or_different(results<missing_loop_barrier_kernel>()));
}

__global__ void missing_syncwarp_kernel(const __grid_constant__ Args p) {
  auto& s = block_shared<Block>();
  s[threadIdx.x] = p.x[threadIdx.x];
  p.x[threadIdx.x] = s[threadIdx.x ^ 1];
}

TEST(Bugs, MissingSyncwarp) {
  SKIP_IF_RACES_ARE_REPORTED();
  EXPECT_TRUE(nan_or_different(results<missing_syncwarp_kernel>()));
}

template <int Newer, bool Barrier>
__global__ void pipeline_kernel(const __grid_constant__ Args p) {
  auto& s = block_shared<Tiles>();
  float sum = 0;
  if (threadIdx.x < 32) cp_async16(&s.stage[0][threadIdx.x * 4], p.x + threadIdx.x * 4);
  cp_async_commit();
  for (size_t i = 0; i < 3; i++) {
    if (threadIdx.x < 32) cp_async16(&s.stage[(i + 1) % 2][threadIdx.x * 4], p.x + threadIdx.x * 4);
    cp_async_commit();
    cp_async_wait<Newer>();
    if (Barrier) __syncthreads();
    sum += s.stage[i % 2][127 - threadIdx.x];
    __syncthreads();
  }
  p.x[128 + threadIdx.x] = sum;
}

TEST(Bugs, MissingWaitForACopy) {
  SKIP_IF_RACES_ARE_REPORTED();

  EXPECT_FALSE(nan_or_different(results<pipeline_kernel<1, true>>()));
  EXPECT_TRUE(nan_or_different(results<pipeline_kernel<2, true>>())) << "one group too few is waited for";
  EXPECT_TRUE(nan_or_different(results<pipeline_kernel<1, false>>())) << "another thread's copy needs a barrier";
}

__global__ void order_dependent_sum_kernel(const __grid_constant__ Args p) {
  atomicAdd(p.x + 128, 1e5f / (p.x[threadIdx.x] + 3.0f));
}

TEST(Bugs, ASumInOrderOfArrival) { EXPECT_TRUE(nan_or_different(results<order_dependent_sum_kernel>())); }

constexpr int kBarrierLine = __LINE__ + 3, kSyncwarpLine = __LINE__ + 5;
__global__ void divergent_barrier_kernel(const __grid_constant__ Args p) {
  if (threadIdx.x < 70) {
    __syncthreads();
  } else if (threadIdx.x < 80) {
    __syncwarp();
  }
  p.x[threadIdx.x] = 0.0f;
}

TEST(Bugs, ABarrierThatNotAllReachIsReportedWithEveryPlace) {
  set_order(Order::forward);
  const std::string error = error_of_kernel<divergent_barrier_kernel>();
  EXPECT_NE(error.find("lane 16, which has returned"), std::string::npos) << error;
  EXPECT_NE(error.find(here(kSyncwarpLine)), std::string::npos) << error;
  EXPECT_CAUGHT(divergent_barrier_kernel, here(kSyncwarpLine));
}

constexpr int kStuckLine = __LINE__ + 3;
__global__ void stuck_kernel(const __grid_constant__ Args p) {
  if (threadIdx.x < 64) {
    __syncthreads();
  } else if (threadIdx.x < 96) {
    __ballot_sync(~0u, 1);
    __syncwarp();
    named_barrier_sync(3, 64);
  }
  p.x[threadIdx.x] = 0.0f;
}

TEST(Bugs, AStuckKernelTellsWhereEveryThreadWaits) {
  EXPECT_CAUGHT(stuck_kernel, "kernel is stuck in block 0,0,0:",
                "\n  64 threads at barrier 0, " + std::string(__FILE__) + ":" + std::to_string(kStuckLine),
                "\n  32 threads at barrier 3, " + std::string(__FILE__) + ":" + std::to_string(kStuckLine + 4),
                "\n  32 threads returned");
}

constexpr int kTwoPlacesLine = __LINE__ + 3;
__global__ void two_places_kernel(const __grid_constant__ Args p) {
  if (threadIdx.x < 64) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  p.x[threadIdx.x] = 0.0f;
}

TEST(Bugs, ABarrierReachedAtTwoPlaces) {
  EXPECT_CAUGHT(two_places_kernel, "divergent __syncthreads", here(kTwoPlacesLine), here(kTwoPlacesLine + 2));
}

constexpr int kExitedLine = __LINE__ + 3;
__global__ void exited_lane_kernel(const __grid_constant__ Args p) {
  if (threadIdx.x % 32 >= 16) return;
  p.x[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
}

TEST(Bugs, AShuffleThatNamesALaneThatReturned) {
  EXPECT_CAUGHT(exited_lane_kernel, "__shfl_xor_sync", "returned", here(kExitedLine));
}

constexpr int kMaskLine = __LINE__ + 2;
__global__ void foreign_mask_kernel(const __grid_constant__ Args p) {
  p.x[threadIdx.x] = static_cast<float>(__any_sync(0xffffu, 1));
}

TEST(Bugs, ALaneOutsideItsOwnMask) { EXPECT_CAUGHT(foreign_mask_kernel, "not in its own mask", here(kMaskLine)); }

constexpr int kDivergentLine = __LINE__ + 3;
__global__ void divergent_shuffle_kernel(const __grid_constant__ Args p) {
  if (threadIdx.x % 2) {
    p.x[threadIdx.x] = __shfl_sync(~0u, 1.0f, 0);
  } else {
    p.x[threadIdx.x] = __shfl_sync(~0u, 2.0f, 1);
  }
}

TEST(Bugs, AShuffleReachedAtTwoPlaces) {
  EXPECT_CAUGHT(divergent_shuffle_kernel, "divergent __shfl_sync", here(kDivergentLine), here(kDivergentLine + 2));
}

constexpr int kMasksLine = __LINE__ + 2;
__global__ void differing_masks_kernel(const __grid_constant__ Args p) {
  p.x[threadIdx.x] = __shfl_sync(threadIdx.x % 2 ? ~0u : 0x55555555u | 2u, 1.0f, 0);
}

TEST(Bugs, MasksThatDiffer) { EXPECT_CAUGHT(differing_masks_kernel, "__shfl_sync", here(kMasksLine)); }

constexpr int kLoadLine = __LINE__ + 2;
__global__ void misaligned_load_kernel(const __grid_constant__ Args p) {
  const uint4 value = load_streaming(reinterpret_cast<const uint4*>(p.x + threadIdx.x % 2 * 2));
  p.x[0] = static_cast<float>(value.x);
}

constexpr int kCopyLine = __LINE__ + 2;
__global__ void misaligned_copy_kernel(const __grid_constant__ Args p) {
  cp_async16(block_shared<Block>().data() + 2, p.x);
}

constexpr int kMatrixLine = __LINE__ + 3;
__global__ void misaligned_matrix_kernel(const __grid_constant__ Args p) {
  uint32_t r[4];
  ldmatrix<false>(r, block_shared<Block>().data() + threadIdx.x % 32 * 2);
  p.x[0] = static_cast<float>(r[0]);
}

constexpr int kGlobalLine = __LINE__ + 3;
__global__ void matrix_in_global_kernel(const __grid_constant__ Args p) {
  uint32_t r[4];
  ldmatrix<false>(r, p.x);
  p.x[0] = static_cast<float>(r[0]);
}

TEST(Bugs, AddressesThatTheHardwareRefuses) {
  EXPECT_CAUGHT(misaligned_load_kernel, "load_streaming: address is not 16-byte aligned", here(kLoadLine));
  EXPECT_CAUGHT(misaligned_copy_kernel, "cp_async16: address is not 16-byte aligned", here(kCopyLine));
  EXPECT_CAUGHT(misaligned_matrix_kernel, "ldmatrix: address is not 16-byte aligned", here(kMatrixLine));
  EXPECT_CAUGHT(matrix_in_global_kernel, "ldmatrix: address is not in shared memory", here(kGlobalLine));
}

constexpr int kCountLine = __LINE__ + 2;
__global__ void differing_counts_kernel(const __grid_constant__ Args p) {
  named_barrier_sync(1, threadIdx.x < 64 ? 96 : 128);
  p.x[threadIdx.x] = 0.0f;
}

TEST(Bugs, ANamedBarrierAwaitedWithDifferentCounts) {
  EXPECT_CAUGHT(differing_counts_kernel, "another number of threads", here(kCountLine));
}

__global__ void throwing_kernel(const __grid_constant__ Args p) {
  __syncthreads();
  if (threadIdx.x == static_cast<unsigned>(p.n)) throw std::runtime_error("from a thread");
  __syncthreads();
}

TEST(Bugs, AnExceptionOfAThreadReachesTheLauncher) { EXPECT_CAUGHT(throwing_kernel, "from a thread"); }

}  // namespace
}  // namespace quire::simt
