// Counter-based random numbers (Philox 4x32-10, Salmon et al. 2011) and the Gumbel noise of a token.
//
// The noise of a token is a pure function of (seed, output_index, token_id): the same for every backend, batch and
// thread. Nothing here may be contracted or reassociated by a compiler: integer arithmetic, then one fixed sequence of
// float operations that have the same bits everywhere.
#pragma once

#include <bit>
#include <cstdint>

namespace quire {

struct Philox4 {
  uint32_t x, y, z, w;
};

constexpr Philox4 philox_4x32_10(Philox4 counter, uint32_t key_lo, uint32_t key_hi) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(0xd2511f53u) * counter.x;
    const uint64_t b = static_cast<uint64_t>(0xcd9e8d57u) * counter.z;
    counter = {static_cast<uint32_t>(b >> 32) ^ counter.y ^ key_lo, static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter.w ^ key_hi, static_cast<uint32_t>(a)};
    key_lo += 0x9e3779b9u;
    key_hi += 0xbb67ae85u;
  }
  return counter;
}

// 32 random bits of a token: word (token_id % 4) of the block with counter (token_id / 4, output_index, 0, 0).
constexpr uint32_t token_random_bits(uint64_t seed, uint32_t output_index, uint32_t token_id) {
  const Philox4 r = philox_4x32_10({token_id / 4, output_index, 0, 0}, static_cast<uint32_t>(seed),
                                   static_cast<uint32_t>(seed >> 32));
  const uint32_t lane = token_id % 4;
  return lane == 0 ? r.x : lane == 1 ? r.y : lane == 2 ? r.z : r.w;
}

// Natural logarithm of a positive normal float, as a fixed sequence of operations (relative error below 2e-7 away from
// 1). Reduction to m in [sqrt(1/2), sqrt(2)) and the atanh series in s = (m - 1) / (m + 1).
constexpr float fixed_log(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
  const float m = std::bit_cast<float>(bits - (static_cast<uint32_t>(exponent) << 23));
  const float s = (m - 1.0f) / (m + 1.0f);
  const float z = s * s;
  float p = 0.22222222f;    // 2/9
  p = p * z + 0.28571429f;  // 2/7
  p = p * z + 0.4f;         // 2/5
  p = p * z + 0.66666667f;  // 2/3
  p = p * z + 2.0f;
  return static_cast<float>(exponent) * 0.69314718f + s * p;
}

// u uniform in (0, 1) with 23 bits and a half added (exact in float, never 0 or 1): noise = -log(-log(u)), in
// (-2.9, 16.7).
constexpr float gumbel_from_bits(uint32_t bits) {
  const float u = (static_cast<float>(bits >> 9) + 0.5f) * 0x1p-23f;
  return -fixed_log(-fixed_log(u));
}

constexpr float kMaxGumbel = 16.7f;  // above every value of gumbel_from_bits: what pruning may rely on

}  // namespace quire
