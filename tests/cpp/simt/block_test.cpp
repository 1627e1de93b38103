// Launch, thread indices, shared memory, barriers: what a block is.
#include <array>
#include <cmath>
#include <thread>
#include <vector>

#include "simt/orders.h"

namespace quire::simt {
namespace {

struct IndexArgs {
  unsigned* count;  // one a thread of the grid
};

__global__ void index_kernel(const __grid_constant__ IndexArgs p) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  p.count[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1 + thread;
}

TEST(Block, EveryThreadOfEveryBlockRunsOnce) {
  in_every_order([] {
    const dim3 grid(3, 2, 2), block(5, 3, 4);
    std::vector<unsigned> count(12 * 60);
    launch<index_kernel>({.grid = grid, .block = block}, IndexArgs{count.data()});
    for (unsigned i = 0; i < count.size(); i++) EXPECT_EQ(count[i], 1 + i % 60);
  });
}

struct OrderArgs {
  unsigned* seen;
  unsigned* next;
};

__global__ void order_kernel(const __grid_constant__ OrderArgs p) { p.seen[atomicAdd(p.next, 1u)] = threadIdx.x; }

TEST(Block, OrdersAreWhatTheySay) {
  const auto run = [](Order order, uint64_t seed) {
    set_order(order, seed);
    std::vector<unsigned> seen(100);
    unsigned next = 0;
    launch<order_kernel>({.grid = dim3(1), .block = dim3(100)}, OrderArgs{seen.data(), &next});
    set_order(Order::forward);
    return seen;
  };
  std::vector<unsigned> ascending(100);
  for (unsigned i = 0; i < 100; i++) ascending[i] = i;
  EXPECT_EQ(run(Order::forward, 1), ascending);
  const auto random = run(Order::random, 1);
  EXPECT_EQ(run(Order::random, 1), random) << "the seed decides";
  EXPECT_NE(run(Order::random, 2), random);
  EXPECT_EQ(run(Order::reverse, 1), std::vector<unsigned>(ascending.rbegin(), ascending.rend()));
}

struct FloatArgs {
  float* x;
  int n = 0;
};

struct alignas(1024) RotateSmem {
  float values[256];
};

__global__ void rotate_kernel(const __grid_constant__ FloatArgs p) {
  auto& s = block_shared<RotateSmem>();
  const unsigned t = threadIdx.x;
  for (int i = 0; i < p.n; i++) {
    s.values[t] = p.x[blockIdx.x * blockDim.x + t];
    __syncthreads();
    p.x[blockIdx.x * blockDim.x + t] = s.values[(t + 1) % blockDim.x];
    __syncthreads();
  }
}

TEST(Block, BarriersOrderSharedMemory) {
  in_every_order([] {
    for (const unsigned threads : {1u, 31u, 33u, 256u}) {
      std::vector<float> x(2 * threads);
      for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(i);
      launch<rotate_kernel>({.grid = dim3(2), .block = dim3(threads), .shared_bytes = sizeof(RotateSmem)},
                            FloatArgs{x.data(), 3});
      for (unsigned i = 0; i < x.size(); i++) {
        EXPECT_EQ(x[i], static_cast<float>(i / threads * threads + (i % threads + 3) % threads));
      }
    }
  });
}

__global__ void fresh_kernel(const __grid_constant__ FloatArgs p) {
  auto& s = block_shared<std::array<float, 8>>();
  p.x[blockIdx.x * 8 + threadIdx.x] = s[threadIdx.x];
  s[threadIdx.x] = 1.0f;
  if (reinterpret_cast<uintptr_t>(&s) % 1024) p.x[0] = 0.0f;
}

TEST(Block, SharedMemoryStartsAsNanInEveryBlock) {
  std::vector<float> x(24, 0.0f);
  launch<fresh_kernel>({.grid = dim3(3), .block = dim3(8), .shared_bytes = 32}, FloatArgs{x.data()});
  for (const float value : x) EXPECT_TRUE(std::isnan(value));
}

__global__ void oversized_kernel(const __grid_constant__ FloatArgs p) {
  p.x[0] = block_shared<std::array<float, 9>>()[0];
}

TEST(Block, RefusesAStructLargerThanTheLaunchHas) {
  float x = 0;
  const auto run = [&] {
    launch<oversized_kernel>({.grid = dim3(1), .block = dim3(1), .shared_bytes = 32}, FloatArgs{&x});
  };
  EXPECT_NE(error_of(run).find("block_shared"), std::string::npos) << error_of(run);
}

struct VoteArgs {
  int* any;
};

__global__ void block_vote_kernel(const __grid_constant__ VoteArgs p) {
  const unsigned t = threadIdx.x;
  for (unsigned i = 0; i < 4; i++) {  // one after the other, so that results must not mix
    p.any[t * 4 + i] = __syncthreads_or(t == i * 30);
  }
}

TEST(Block, BarriersVote) {
  in_every_order([] {
    std::vector<int> any(64 * 4);
    launch<block_vote_kernel>({.grid = dim3(1), .block = dim3(64)}, VoteArgs{any.data()});
    for (size_t i = 0; i < any.size(); i++) EXPECT_EQ(any[i], i % 4 < 3);
  });
}

__global__ void early_return_kernel(const __grid_constant__ FloatArgs p) {
  auto& s = block_shared<std::array<float, 128>>();
  const unsigned t = threadIdx.x;
  s[t] = static_cast<float>(t);
  if (t >= static_cast<unsigned>(p.n)) return;
  __syncthreads();
  p.x[t] = s[static_cast<unsigned>(p.n) - 1 - t];
}

TEST(Block, ThreadsThatReturnedDoNotHoldABarrierBack) {
  in_every_order([] {
    for (const int n : {1, 40, 128}) {
      std::vector<float> x(128, -1.0f);
      launch<early_return_kernel>({.grid = dim3(1), .block = dim3(128), .shared_bytes = 512}, FloatArgs{x.data(), n});
      for (int i = 0; i < 128; i++) {
        EXPECT_EQ(x[static_cast<size_t>(i)], i < n ? static_cast<float>(n - 1 - i) : -1.0f);
      }
    }
  });
}

// Two warps produce, two consume, over a ring of two stages: barriers 1, 2 say full, 3, 4 say empty.
__global__ void ring_kernel(const __grid_constant__ FloatArgs p) {
  auto& ring = block_shared<std::array<std::array<float, 64>, 2>>();
  const unsigned t = threadIdx.x % 64;
  for (int i = 0; i < p.n; i++) {
    const int stage = i % 2;
    if (threadIdx.x < 64) {
      if (i >= 2) named_barrier_sync(3 + stage, 128);
      ring[static_cast<size_t>(stage)][t] = static_cast<float>(i * 64 + static_cast<int>(t));
      named_barrier_arrive(1 + stage, 128);
    } else {
      named_barrier_sync(1 + stage, 128);
      p.x[i * 64 + static_cast<int>(t)] = ring[static_cast<size_t>(stage)][63 - t];
      if (i + 2 < p.n) named_barrier_arrive(3 + stage, 128);
    }
  }
}

TEST(Block, NamedBarriersPassARingFromWarpToWarp) {
  in_every_order([] {
    std::vector<float> x(64 * 7);
    launch<ring_kernel>({.grid = dim3(1), .block = dim3(128), .shared_bytes = 512}, FloatArgs{x.data(), 7});
    for (size_t i = 0; i < x.size(); i++) EXPECT_EQ(x[i], static_cast<float>(i / 64 * 64 + 63 - i % 64));
  });
}

struct LastBlockArgs {
  float* partial;
  unsigned* ticket;
  float* sum;
};

__global__ void last_block_kernel(const __grid_constant__ LastBlockArgs p) {
  auto& last = block_shared<bool>();
  if (threadIdx.x == 0) {
    p.partial[blockIdx.x] = static_cast<float>(blockIdx.x + 1);
    __threadfence();
    last = atomicAdd(p.ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last || threadIdx.x != 0) return;
  for (unsigned i = 0; i < gridDim.x; i++) *p.sum += p.partial[i];
}

TEST(Block, TheLastBlockCombines) {
  in_every_order([] {
    std::vector<float> partial(20);
    unsigned ticket = 0;
    float sum = 0;
    launch<last_block_kernel>({.grid = dim3(20), .block = dim3(64), .shared_bytes = 1},
                              LastBlockArgs{partial.data(), &ticket, &sum});
    EXPECT_EQ(sum, 210.0f);
  });
}

TEST(Block, RefusesWhatNoGpuTakes) {
  float x = 0;
  const auto refuse = [&](const LaunchConfig& config) {
    return error_of([&] { launch<rotate_kernel>(config, FloatArgs{&x}); }).find("invalid launch: ") == 0;
  };
  EXPECT_TRUE(refuse({.grid = dim3(1), .block = dim3(1025)}));
  EXPECT_TRUE(refuse({.grid = dim3(0), .block = dim3(32)}));
  EXPECT_TRUE(refuse({.grid = dim3(1, 65536), .block = dim3(32)}));
  EXPECT_TRUE(refuse({.grid = dim3(1), .block = dim3(32), .shared_bytes = (227 << 10) + 1}));
}

TEST(Block, SeveralOsThreadsLaunchAtOnce) {
  std::vector<std::vector<float>> x(3);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < x.size(); i++) {
    threads.emplace_back([&, i] {
      set_order(static_cast<Order>(i), 7);
      x[i].resize(64);
      for (size_t j = 0; j < 64; j++) x[i][j] = static_cast<float>(j + i);
      launch<rotate_kernel>({.grid = dim3(1), .block = dim3(64), .shared_bytes = sizeof(RotateSmem)},
                            FloatArgs{x[i].data(), 20});
    });
  }
  for (auto& thread : threads) thread.join();
  for (size_t i = 0; i < x.size(); i++) {
    for (size_t j = 0; j < 64; j++) EXPECT_EQ(x[i][j], static_cast<float>((j + 20) % 64 + i));
  }
}

}  // namespace
}  // namespace quire::simt
