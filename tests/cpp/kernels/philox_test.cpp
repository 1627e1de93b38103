// The generator against its published vectors, and its noise: bounds, and that no two parts of the key are mixed up.
#include "params/philox.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace quire {
namespace {

void expect_block(const Philox4& got, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  EXPECT_EQ(got.x, x);
  EXPECT_EQ(got.y, y);
  EXPECT_EQ(got.z, z);
  EXPECT_EQ(got.w, w);
}

// kat_vectors of Random123, philox4x32 with 10 rounds.
TEST(Philox, KnownAnswers) {
  expect_block(philox_4x32_10({0, 0, 0, 0}, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8);
  constexpr uint32_t kOnes = 0xffffffffu;
  expect_block(philox_4x32_10({kOnes, kOnes, kOnes, kOnes}, kOnes, kOnes), 0x408f276d, 0x41c83b0e, 0xa20bc7c6,
               0x6d5451fd);
  expect_block(philox_4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0), 0xd16cfe09,
               0x94fdcceb, 0x5001e420, 0x24126ea1);
}

TEST(Philox, EveryPartOfTheKeyMatters) {
  std::set<uint32_t> seen;
  for (const uint64_t seed : {0ull, 1ull, 1ull << 32}) {
    for (uint32_t index = 0; index < 3; ++index) {
      for (uint32_t token = 0; token < 9; ++token) seen.insert(token_random_bits(seed, index, token));
    }
  }
  EXPECT_EQ(seen.size(), 3u * 3u * 9u);
}

TEST(Gumbel, LogarithmIsAccurate) {
  for (int i = 1; i < 2000; ++i) {
    for (const float x : {static_cast<float>(i) * 0x1p-24f, static_cast<float>(i) * 0.01f}) {
      const double want = std::log(static_cast<double>(x));
      EXPECT_NEAR(fixed_log(x), want, 3e-7 * std::abs(want) + 1e-7) << x;
    }
  }
}

TEST(Gumbel, BoundsOfTheNoise) {
  EXPECT_LT(gumbel_from_bits(0xffffffffu), kMaxGumbel);
  EXPECT_GT(gumbel_from_bits(0xffffffffu), 16.0f);
  EXPECT_GT(gumbel_from_bits(0), -2.9f);
  float previous = gumbel_from_bits(0);
  for (uint32_t i = 1; i < (1u << 23); i += 4099) {  // rising, so the bounds hold for all bits
    const float noise = gumbel_from_bits(i << 9);
    EXPECT_GE(noise, previous);
    previous = noise;
  }
}

}  // namespace
}  // namespace quire
