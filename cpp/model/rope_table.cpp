// Frequencies of rotary embeddings and their scalings; see rope_table.h. Load time only.
//
// With i the index of a pair and d the rotary dimension, the plain frequency is theta^(-2i/d). The scalings are those
// of transformers' modeling_rope_utils: linear and dynamic NTK, Llama 3.1, YaRN (Peng et al. 2023) and LongRoPE (Ding
// et al. 2024). Everything is computed in double and rounded once.
#include "model/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <tuple>

#include "base/check.h"

namespace quire {
namespace {

std::vector<double> plain_frequencies(double theta, int32_t rotary_dim) {
  std::vector<double> frequencies(static_cast<size_t>(rotary_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = std::pow(theta, -2.0 * static_cast<double>(i) / rotary_dim);
  }
  return frequencies;
}

// NTK-aware scaling for the one length the table is made for; no scaling when the model was trained that far.
std::vector<double> dynamic_frequencies(const RopeSpec& rope, int64_t max_model_len) {
  if (max_model_len <= rope.original_max_positions) return plain_frequencies(rope.theta, rope.rotary_dim);
  const double dim = rope.rotary_dim;
  const double stretch =
      rope.factor * static_cast<double>(max_model_len) / static_cast<double>(rope.original_max_positions) -
      (rope.factor - 1.0);
  return plain_frequencies(rope.theta * std::pow(stretch, dim / (dim - 2.0)), rope.rotary_dim);
}

// Waves shorter than the high-frequency bound stay, longer than the low-frequency bound are divided by the factor,
// and a line leads from one to the other.
std::vector<double> llama3_frequencies(const RopeSpec& rope) {
  std::vector<double> frequencies = plain_frequencies(rope.theta, rope.rotary_dim);
  const double original = static_cast<double>(rope.original_max_positions);
  for (double& frequency : frequencies) {
    const double wavelength = 2.0 * std::numbers::pi / frequency;
    if (wavelength < original / rope.high_freq_factor) continue;
    if (wavelength > original / rope.low_freq_factor) {
      frequency /= rope.factor;
      continue;
    }
    const double smooth =
        (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
    frequency = (1.0 - smooth) * frequency / rope.factor + smooth * frequency;
  }
  return frequencies;
}

std::vector<double> yarn_frequencies(const RopeSpec& rope) {
  const double dim = rope.rotary_dim;
  // The dimension whose wave turns `rotations` times within the trained context.
  const auto correction_dim = [&](double rotations) {
    return dim * std::log(static_cast<double>(rope.original_max_positions) / (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(rope.theta));
  };
  double low = correction_dim(rope.beta_fast);
  double high = correction_dim(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;
  std::vector<double> frequencies = plain_frequencies(rope.theta, rope.rotary_dim);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double interpolated = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] *= interpolated / rope.factor + (1.0 - interpolated);
  }
  return frequencies;
}

std::vector<double> longrope_frequencies(const RopeSpec& rope, int64_t max_model_len) {
  const std::vector<double>& factors =
      max_model_len > rope.original_max_positions ? rope.long_factor : rope.short_factor;
  std::vector<double> frequencies = plain_frequencies(rope.theta, rope.rotary_dim);
  QUIRE_CHECK(factors.size() == frequencies.size(), factors.size(), " != ", frequencies.size());
  for (size_t i = 0; i < frequencies.size(); ++i) frequencies[i] /= factors[i];
  return frequencies;
}

std::vector<double> rope_frequencies(const RopeSpec& rope, int64_t max_model_len) {
  switch (rope.scaling) {
    case RopeScaling::none:
      return plain_frequencies(rope.theta, rope.rotary_dim);
    case RopeScaling::linear: {
      std::vector<double> frequencies = plain_frequencies(rope.theta, rope.rotary_dim);
      for (double& frequency : frequencies) frequency /= rope.factor;
      return frequencies;
    }
    case RopeScaling::dynamic:
      return dynamic_frequencies(rope, max_model_len);
    case RopeScaling::llama3:
      return llama3_frequencies(rope);
    case RopeScaling::yarn:
      return yarn_frequencies(rope);
    case RopeScaling::longrope:
      return longrope_frequencies(rope, max_model_len);
  }
  QUIRE_CHECK(false, "rope scaling ", static_cast<int>(rope.scaling));
  return {};
}

}  // namespace

std::vector<float> rope_cos_sin(const RopeSpec& rope, int64_t num_positions, int64_t max_model_len) {
  QUIRE_CHECK(rope.rotary_dim % 2 == 0, "rotary_dim ", rope.rotary_dim);
  if (rope.rotary_dim == 0) return {};
  const std::vector<double> frequencies = rope_frequencies(rope, max_model_len);
  const size_t half = frequencies.size();
  std::vector<float> table(static_cast<size_t>(num_positions) * 2 * half);
  for (size_t position = 0; position < static_cast<size_t>(num_positions); ++position) {
    float* row = table.data() + position * 2 * half;
    for (size_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position) * frequencies[i];
      row[i] = static_cast<float>(std::cos(angle) * rope.attention_factor);
      row[half + i] = static_cast<float>(std::sin(angle) * rope.attention_factor);
    }
  }
  return table;
}

bool operator==(const RopeSpec& a, const RopeSpec& b) {
  const auto fields = [](const RopeSpec& rope) {
    return std::tie(rope.rotary_dim, rope.theta, rope.interleaved, rope.scaling, rope.factor,
                    rope.original_max_positions, rope.low_freq_factor, rope.high_freq_factor, rope.beta_fast,
                    rope.beta_slow, rope.truncate, rope.attention_factor, rope.short_factor, rope.long_factor);
  };
  return fields(a) == fields(b);
}

}  // namespace quire
