// The rule of T5 for the bucket of a distance; see relative_bias.h.
#include "model/relative_bias.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "base/check.h"

namespace quire {

void check_relative_bias(const RelativeBias& spec) {
  constexpr int32_t kMostDistance = 65536;  // so that the entries of all heads can be counted in 32 bits
  const int64_t num_exact = spec.num_buckets / 4;
  require(num_exact >= 1 && spec.max_distance > num_exact && spec.max_distance <= kMostDistance,
          str_cat("config keys \"relative_attention_num_buckets\" (", spec.num_buckets,
                  ") and \"relative_attention_max_distance\" (", spec.max_distance,
                  "): there must be at least 4 buckets, and the distance must be more than a quarter of "
                  "them and at most ",
                  kMostDistance));
}

int64_t relative_bucket(const RelativeBias& spec, int32_t distance) {
  const int64_t half = spec.num_buckets / 2, num_exact = half / 2, away = std::abs(distance);
  const int64_t side = distance > 0 ? half : 0;
  if (away < num_exact) return side + away;
  // In float32, as the models were trained: at the borders of buckets the rounding decides.
  const auto exact = static_cast<float>(num_exact);
  const auto span =
      static_cast<float>(std::log(static_cast<double>(spec.max_distance) / static_cast<double>(num_exact)));
  const float step = std::log(static_cast<float>(away) / exact) / span * static_cast<float>(half - num_exact);
  return side + std::min(half - 1, num_exact + static_cast<int64_t>(step));
}

std::vector<std::byte> relative_bias_by_distance(const RelativeBias& spec, const void* buckets, DType dtype,
                                                 int64_t stored_heads, int64_t first_head, int64_t num_heads) {
  const size_t size = dtype_bytes(dtype);
  const auto* const from = static_cast<const std::byte*>(buckets);
  std::vector<std::byte> biases(static_cast<size_t>(num_heads * num_relative_distances(spec)) * size);
  std::byte* to = biases.data();
  for (int64_t head = 0; head < num_heads; ++head) {
    for (int32_t distance = -spec.max_distance; distance <= spec.max_distance; ++distance, to += size) {
      const int64_t stored = relative_bucket(spec, distance) * stored_heads + first_head + head;
      std::memcpy(to, from + static_cast<size_t>(stored) * size, size);
    }
  }
  return biases;
}

}  // namespace quire
