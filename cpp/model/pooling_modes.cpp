// Modes of sentence-transformers; see pooling_modes.h.
#include "model/pooling_modes.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace quire {
namespace {

// The weight of a token of a weighted sum, and what the sum is divided by.
double weight_of(PoolingMode mode, int64_t token) {
  return mode == PoolingMode::weightedmean ? static_cast<double>(token + 1) : 1.0;
}

double divisor_of(PoolingMode mode, int64_t first, int64_t num_tokens) {
  double sum = 0.0;
  for (int64_t token = first; token < num_tokens; ++token) sum += weight_of(mode, token);
  return mode == PoolingMode::mean_sqrt_len_tokens ? std::sqrt(sum) : sum;
}

// Row by row, as the states lie in memory.
void sum_rows(std::span<const float> states, int64_t first, PoolingMode mode, std::span<float> out) {
  const auto hidden = static_cast<int64_t>(out.size());
  const int64_t num_tokens = static_cast<int64_t>(states.size()) / hidden;
  std::vector<double> sums(out.size(), 0.0);
  for (int64_t token = first; token < num_tokens; ++token) {
    const float* row = states.data() + token * hidden;
    const double weight = weight_of(mode, token);
    for (size_t i = 0; i < sums.size(); ++i) sums[i] += weight * static_cast<double>(row[i]);
  }
  const double divisor = divisor_of(mode, first, num_tokens);
  for (size_t i = 0; i < sums.size(); ++i) out[i] = static_cast<float>(sums[i] / divisor);
}

void largest(std::span<const float> states, int64_t first, std::span<float> out) {
  const auto hidden = static_cast<int64_t>(out.size());
  const int64_t num_tokens = static_cast<int64_t>(states.size()) / hidden;
  std::copy_n(states.begin() + first * hidden, hidden, out.begin());
  for (int64_t token = first + 1; token < num_tokens; ++token) {
    const float* row = states.data() + token * hidden;
    for (size_t i = 0; i < out.size(); ++i) out[i] = std::max(out[i], row[i]);
  }
}

void pool_by_mode(std::span<const float> states, int64_t first, PoolingMode mode, std::span<float> out) {
  const auto hidden = static_cast<int64_t>(out.size());
  switch (mode) {
    case PoolingMode::cls:
      std::copy_n(states.begin() + first * hidden, hidden, out.begin());
      break;
    case PoolingMode::lasttoken:
      std::copy_n(states.end() - hidden, hidden, out.begin());
      break;
    case PoolingMode::max:
      largest(states, first, out);
      break;
    default:
      sum_rows(states, first, mode, out);
  }
}

}  // namespace

const char* pooling_mode_name(PoolingMode mode) {
  switch (mode) {
    case PoolingMode::cls:
      return "cls";
    case PoolingMode::max:
      return "max";
    case PoolingMode::mean:
      return "mean";
    case PoolingMode::mean_sqrt_len_tokens:
      return "mean_sqrt_len_tokens";
    case PoolingMode::weightedmean:
      return "weightedmean";
    case PoolingMode::lasttoken:
      break;
  }
  return "lasttoken";
}

std::string joined_names(std::span<const PoolingMode> modes) {
  std::string names;
  for (const PoolingMode mode : modes) names += (names.empty() ? "" : " + ") + std::string(pooling_mode_name(mode));
  return names;
}

void pool_by_modes(std::span<const float> states, int64_t hidden, int64_t num_skipped,
                   std::span<const PoolingMode> modes, std::span<float> out) {
  const auto size = static_cast<size_t>(hidden);
  QUIRE_CHECK(states.size() % size == 0 && num_skipped * hidden < static_cast<int64_t>(states.size()));
  QUIRE_CHECK(out.size() == modes.size() * size);
  for (size_t i = 0; i < modes.size(); ++i) pool_by_mode(states, num_skipped, modes[i], out.subspan(i * size, size));
}

}  // namespace quire
