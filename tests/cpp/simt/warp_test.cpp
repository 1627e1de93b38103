// Warp collectives against loops over lanes, with whole and partial masks.
#include <array>
#include <bit>
#include <random>
#include <vector>

#include "simt/orders.h"

namespace quire::simt {
namespace {

constexpr uint32_t kMasks[] = {~0u, 0x0000ffffu, 0xffff0000u, 0x55555555u, 0x80000001u, 0x00f00ff0u};

template <typename T>
struct ShuffleArgs {
  T* in;
  T* out;
  uint32_t mask;
  int amount, width;
};

// Eight results a lane; lanes outside the mask wait elsewhere meanwhile.
template <typename T>
__global__ void shuffle_kernel(const __grid_constant__ ShuffleArgs<T> p) {
  const unsigned t = threadIdx.x, lane = t % 32;
  if (!(p.mask >> lane & 1)) {
    __syncwarp(~p.mask);
    return;
  }
  const T value = p.in[t];
  T* const out = p.out + t * 4;
  out[0] = __shfl_sync(p.mask, value, p.amount, p.width);
  out[1] = __shfl_xor_sync(p.mask, value, p.amount, p.width);
  out[2] = __shfl_up_sync(p.mask, value, static_cast<unsigned>(p.amount), p.width);
  out[3] = __shfl_down_sync(p.mask, value, static_cast<unsigned>(p.amount), p.width);
}

// Where lane l reads, by the definitions of the CUDA C++ programming guide.
int source_lane(int kind, int lane, int amount, int width) {
  const int first = lane / width * width, index = lane % width;
  int source = 0;
  if (kind == 0) source = first + amount % width;
  if (kind == 1) source = lane ^ amount;
  if (kind == 2) source = lane - amount;
  if (kind == 3) source = lane + amount;
  if (kind == 1) return source < first + width ? source : lane;
  if (kind == 2) return index >= amount ? source : lane;
  if (kind == 3) return index + amount < width ? source : lane;
  return source;
}

template <typename T>
void check_shuffles() {
  std::vector<T> in(64), out(64 * 4);
  for (size_t i = 0; i < 64; i++) in[i] = static_cast<T>(i * 7 + 1);
  for (const uint32_t mask : kMasks) {
    for (const int width : {32, 16, 8, 2}) {
      for (const int amount : {0, 1, 3, 8, 17}) {
        launch<shuffle_kernel<T>>({.grid = dim3(1), .block = dim3(64)},
                                  ShuffleArgs<T>{in.data(), out.data(), mask, amount, width});
        for (int t = 0; t < 64; t++) {
          if (!(mask >> t % 32 & 1)) continue;
          for (int kind = 0; kind < 4; kind++) {
            const int source = source_lane(kind, t % 32, amount, width);
            if (!(mask >> source & 1)) continue;  // undefined
            EXPECT_EQ(static_cast<float>(out[static_cast<size_t>(t * 4 + kind)]),
                      static_cast<float>(in[static_cast<size_t>(t / 32 * 32 + source)]))
                << "kind " << kind << " mask " << mask << " width " << width << " amount " << amount << " thread " << t;
          }
        }
      }
    }
  }
}

TEST(Warp, ShufflesReadTheLaneTheyName) {
  in_every_order([] {
    check_shuffles<float>();
    check_shuffles<int64_t>();
    check_shuffles<__nv_bfloat16>();
  });
}

TEST(Warp, AShuffleFromALaneThatTakesNoPartIsNan) {
  std::vector<float> in(32, 1.0f), out(32 * 4);
  launch<shuffle_kernel<float>>({.grid = dim3(1), .block = dim3(32)},
                                ShuffleArgs<float>{in.data(), out.data(), 0xffffu, 16, 32});
  EXPECT_TRUE(std::isnan(out[0]));
}

struct VoteArgs {
  const uint32_t* in;
  uint32_t* out;
  uint32_t mask;
};

__global__ void vote_kernel(const __grid_constant__ VoteArgs p) {
  const unsigned lane = threadIdx.x;
  if (!(p.mask >> lane & 1)) return;
  const uint32_t value = p.in[lane];
  uint32_t* const out = p.out + lane * 6;
  out[0] = __ballot_sync(p.mask, value % 3 == 0);
  out[1] = static_cast<uint32_t>(__any_sync(p.mask, value % 5 == 0));
  out[2] = static_cast<uint32_t>(__all_sync(p.mask, value % 2 == 0));
  out[3] = __match_any_sync(p.mask, value % 4);
  out[4] = __reduce_max_sync(p.mask, value);
  out[5] = static_cast<uint32_t>(__reduce_max_sync(p.mask, -static_cast<int>(value)));
}

TEST(Warp, VotesMatchesAndReductions) {
  std::mt19937 random(3);
  std::array<uint32_t, 32> in;
  for (const uint32_t spread : {2u, 6u, 1000u}) {
    for (auto& value : in) value = random() % spread * 2;
    in_every_order([&] {
      for (const uint32_t mask : kMasks) {
        std::vector<uint32_t> out(32 * 6);
        launch<vote_kernel>({.grid = dim3(1), .block = dim3(32)}, VoteArgs{in.data(), out.data(), mask});
        uint32_t thirds = 0, any = 0, all = 1, most = 0, least = ~0u;
        for (unsigned lane = 0; lane < 32; lane++) {
          if (!(mask >> lane & 1)) continue;
          thirds |= uint32_t{in[lane] % 3 == 0} << lane;
          any |= in[lane] % 5 == 0;
          all &= in[lane] % 2 == 0;
          most = std::max(most, in[lane]);
          least = std::min(least, in[lane]);
        }
        for (unsigned lane = 0; lane < 32; lane++) {
          if (!(mask >> lane & 1)) continue;
          uint32_t equal = 0;
          for (unsigned other = 0; other < 32; other++) {
            equal |= uint32_t{(mask >> other & 1) && in[other] % 4 == in[lane] % 4} << other;
          }
          const uint32_t expected[6] = {thirds, any, all, equal, most, 0u - least};
          for (unsigned i = 0; i < 6; i++) EXPECT_EQ(out[lane * 6 + i], expected[i]) << i << " mask " << mask;
        }
      }
    });
  }
}

struct SumArgs {
  const float* in;
  float* out;
};

// Sums within a warp through shared memory, where __syncwarp alone orders the lanes.
__global__ void syncwarp_kernel(const __grid_constant__ SumArgs p) {
  auto& s = block_shared<std::array<float, 96>>();
  const unsigned t = threadIdx.x;
  s[t] = p.in[t];
  __syncwarp();
  for (unsigned step = 16; step; step /= 2) {
    const float other = s[t ^ step];
    __syncwarp();
    s[t] += other;
    __syncwarp();
  }
  p.out[t] = s[t];
}

TEST(Warp, SyncwarpOrdersTheLanes) {
  std::vector<float> in(96), first;
  for (size_t i = 0; i < 96; i++) in[i] = 1.0f / static_cast<float>(i + 3);
  in_every_order([&] {
    std::vector<float> out(96);
    launch<syncwarp_kernel>({.grid = dim3(1), .block = dim3(96), .shared_bytes = 384}, SumArgs{in.data(), out.data()});
    if (first.empty()) first = out;
    EXPECT_EQ(out, first);
    float sum = 0;
    for (size_t i = 32; i < 64; i++) sum += in[i];
    EXPECT_NEAR(out[40], sum, 1e-6f);
  });
}

}  // namespace
}  // namespace quire::simt
