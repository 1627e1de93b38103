// The values of weights that nobody trained (load_format="dummy").
//
// A value is a pure function of (seed, index), with the same bits on every backend: integer arithmetic, one exact
// float, then a product and a sum that must not be contracted into one operation.
#pragma once

#include <cstdint>

#include "base/hash.h"

namespace quire {

struct FillDummyParams {
  float* out = nullptr;  // [count]: dummy_unit(seed, index_begin + i) * kDummyScale + added
  int64_t count = 0;
  uint64_t seed = 0;
  int64_t index_begin = 0;
  float added = 0.0f;
};

constexpr float kDummyScale = 1e-3f;

// Uniform in [-1, 1) in steps of 2^-23: exact.
constexpr float dummy_unit(uint64_t seed, int64_t index) {
  const uint64_t bits = mix64(seed + static_cast<uint64_t>(index)) >> 40;
  return static_cast<float>(bits) * 0x1p-23f - 1.0f;
}

}  // namespace quire
