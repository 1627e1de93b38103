// What sampling draws in the long run: parameter combinations, their probabilities in double precision, written for
// clarity, and Pearson's chi-square of counts against them. Seeds are fixed, so a test passes always or never.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "base/threads.h"
#include "kernels/cases/kernel_case.h"
#include "params/sampling.h"

namespace quire::cases {

struct SamplingSetting {
  std::string name;
  SamplingRow row;  // without lists
  std::vector<int32_t> allowed, banned;
  std::vector<TokenBias> biases;
  std::vector<TokenCount> counts;

  SamplingRow linked() const {
    SamplingRow linked = row;
    linked.allowed_ids = allowed.data();
    linked.num_allowed_ids = static_cast<int32_t>(allowed.size());
    linked.banned_ids = banned.data();
    linked.num_banned_ids = static_cast<int32_t>(banned.size());
    linked.biases = biases.data();
    linked.num_biases = static_cast<int32_t>(biases.size());
    linked.counts = counts.data();
    linked.num_counts = static_cast<int32_t>(counts.size());
    return linked;
  }
};

// For a vocabulary of at least 40 tokens.
inline std::vector<SamplingSetting> sampling_settings() {
  const std::vector<TokenCount> counts = {{2, 0}, {5, 1}, {9, 3}, {11, 2}, {20, 0}, {33, 1}};
  SamplingRow penalised{.repetition_penalty = 1.6f, .frequency_penalty = 0.4f, .presence_penalty = -0.7f};
  SamplingRow all = penalised;
  all.temperature = 1.4f;
  all.min_p = 0.02f;
  all.top_k = 18;
  all.top_p = 0.92f;
  return {
      {"plain", {}, {}, {}, {}, {}},
      {"cold", {.temperature = 0.5f}, {}, {}, {}, {}},
      {"hot", {.temperature = 2.2f}, {}, {}, {}, {}},
      {"top_k", {.top_k = 7}, {}, {}, {}, {}},
      {"top_p", {.temperature = 1.3f, .top_p = 0.8f}, {}, {}, {}, {}},
      {"min_p", {.temperature = 1.5f, .min_p = 0.1f}, {}, {}, {}, {}},
      {"filters", {.temperature = 1.7f, .top_k = 20, .top_p = 0.9f, .min_p = 0.03f}, {}, {}, {}, {}},
      {"repetition", {.repetition_penalty = 1.8f}, {}, {}, {}, counts},
      {"reward", {.repetition_penalty = 0.6f}, {}, {}, {}, counts},
      {"frequency", {.frequency_penalty = 0.9f}, {}, {}, {}, counts},
      {"presence", {.presence_penalty = 1.5f}, {}, {}, {}, counts},
      {"bias", {}, {}, {}, {{4, 2.5f}, {9, -3.0f}, {30, 1.0f}}, {}},
      {"lists", {.temperature = 0.9f}, {1, 4, 5, 9, 12, 30, 31}, {12}, {{4, 1.0f}}, {}},
      {"everything", all, {}, {0, 7}, {{3, 1.5f}, {21, -1.0f}}, counts},
  };
}

// In the order that params/sampling.h tells.
inline std::vector<double> sampling_probabilities(const std::vector<float>& logits, const SamplingSetting& setting) {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  const SamplingRow& row = setting.row;
  const size_t n = logits.size();
  std::vector<double> x(logits.begin(), logits.end());
  const auto is_in = [](const std::vector<int32_t>& ids, size_t i) { return std::ranges::count(ids, int32_t(i)) > 0; };
  for (size_t i = 0; i < n; ++i) {
    if ((!setting.allowed.empty() && !is_in(setting.allowed, i)) || is_in(setting.banned, i)) x[i] = kNever;
  }
  for (const auto& [id, bias] : setting.biases) x[size_t(id)] += double(bias);
  for (const auto& [id, count] : setting.counts) {
    double& value = x[size_t(id)];
    value = value > 0.0 ? value / double(row.repetition_penalty) : value * double(row.repetition_penalty);
    value -= double(row.frequency_penalty) * count + (count > 0 ? double(row.presence_penalty) : 0.0);
  }
  const double max = *std::ranges::max_element(x);
  std::vector<double> weights(n);
  for (size_t i = 0; i < n; ++i) {
    weights[i] = std::exp((x[i] - max) / double(row.temperature));
    if (weights[i] < double(row.min_p)) weights[i] = 0.0;
  }
  std::vector<double> sorted = weights;
  std::ranges::sort(sorted, std::greater());
  const double kth = row.top_k > 0 && size_t(row.top_k) < n ? sorted[size_t(row.top_k) - 1] : 0.0;
  double total = 0.0, before = 0.0, least = 0.0;
  for (const double weight : sorted) total += weight >= kth ? weight : 0.0;
  for (const double weight : sorted) {  // the smallest set with the mass top_p
    if (weight < kth || weight == 0.0 || before >= double(row.top_p) * total) break;
    before += weight;
    least = weight;
  }
  double sum = 0.0;
  for (double& weight : weights) sum += weight = weight >= least ? weight : 0.0;
  for (double& weight : weights) weight /= sum;
  return weights;
}

// The value that a chi-square of that many degrees of freedom exceeds once in 10^4 (Wilson and Hilferty).
inline double chi_square_limit(int degrees) {
  const double spread = 2.0 / (9.0 * degrees), quantile = 1.0 - spread + 3.719 * std::sqrt(spread);
  return degrees * quantile * quantile * quantile;
}

// What is tested: a sampling kernel and the bytes of workspace it wants.
struct Sampler {
  void (*sample)(const SamplingParamsBlock& block, Stream stream) = nullptr;
  size_t (*workspace_bytes)(int64_t max_rows, int64_t vocab_size, int num_threads) = nullptr;
};

// A token for every row, all from the same logits.
inline std::vector<int32_t> draw_all(const Sampler& sampler, ThreadPool& pool, const std::vector<float>& logits,
                                     const std::vector<SamplingRow>& rows) {
  const auto vocab_size = static_cast<int32_t>(logits.size());
  const auto num_rows = static_cast<int32_t>(rows.size());
  std::vector<float> all;
  all.reserve(rows.size() * logits.size());
  for (size_t r = 0; r < rows.size(); ++r) all.insert(all.end(), logits.begin(), logits.end());
  std::vector<int32_t> tokens(rows.size(), -1);
  Buffer workspace(DType::u8, static_cast<int64_t>(sampler.workspace_bytes(num_rows, vocab_size, pool.num_threads())));
  sampler.sample({.logits = all.data(),
                  .logits_stride = vocab_size,
                  .vocab_size = vocab_size,
                  .num_rows = num_rows,
                  .rows = rows.data(),
                  .token_ids = tokens.data(),
                  .workspace = workspace.data(),
                  .workspace_bytes = workspace.size_bytes()},
                 Stream{&pool});
  return tokens;
}

// Draws for every setting: a third varies the seed, a third the index, a third both.
inline void expect_distributions(int num_draws, const Sampler& sampler, int num_threads) {
  ThreadPool pool(num_threads);
  Random random(29);
  std::vector<float> logits(47);
  for (float& each : logits) each = static_cast<float>(1.8 * (random.uniform(-1, 1) + random.uniform(-1, 1)));
  uint64_t salt = 1;
  for (const SamplingSetting& setting : sampling_settings()) {
    SCOPED_TRACE(setting.name);
    std::vector<SamplingRow> rows(size_t(num_draws), setting.linked());
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].seed = i % 3 == 1 ? salt : salt + i * 0x9e3779b97f4a7c15ull;
      rows[i].output_index = i % 3 == 0 ? 7 : static_cast<uint32_t>(i);
    }
    salt += 1'000'003;
    const std::vector<double> probabilities = sampling_probabilities(logits, setting);
    std::vector<double> counts(logits.size(), 0.0);
    for (const int32_t token : draw_all(sampler, pool, logits, rows)) counts.at(size_t(token)) += 1.0;
    double chi_square = 0.0, rest_expected = 0.0, rest_counted = 0.0;
    int num_bins = 0;
    const auto add_bin = [&](double counted, double expected) {
      chi_square += (counted - expected) * (counted - expected) / expected;
      ++num_bins;
    };
    for (size_t i = 0; i < logits.size(); ++i) {
      const double expected = probabilities[i] * num_draws;
      if (expected == 0.0) {
        EXPECT_EQ(counts[i], 0.0) << "token " << i << " may not come";
      } else if (expected < 8.0) {  // rare ones together
        rest_expected += expected;
        rest_counted += counts[i];
      } else {
        add_bin(counts[i], expected);
      }
    }
    if (rest_expected >= 8.0) add_bin(rest_counted, rest_expected);
    ASSERT_GT(num_bins, 1);
    EXPECT_LT(chi_square, chi_square_limit(num_bins - 1)) << num_bins << " bins";
  }
}

}  // namespace quire::cases
