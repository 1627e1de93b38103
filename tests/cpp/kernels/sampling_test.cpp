// Sampling against a plain reference that sorts in double precision, against the exact softmax, and at its edges.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "base/threads.h"
#include "kernels/cases/kernel_case.h"
#include "kernels/isas.h"
#include "params/philox.h"

namespace quire {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Sampled {
  std::vector<int32_t> token_ids, logprob_ids, ranks;
  std::vector<float> logprobs;
};

// Runs rows of logits (each vocab_size long) through a table. `stride` entries of logprobs a row.
Sampled sample(const KernelTable& table, const std::vector<std::vector<float>>& logits,
               const std::vector<SamplingRow>& rows, int num_threads = 1, int32_t stride = 1,
               LogprobsMode mode = LogprobsMode::raw_logprobs) {
  const auto vocab_size = static_cast<int32_t>(logits[0].size());
  const auto num_rows = static_cast<int32_t>(rows.size());
  const int64_t logits_stride = vocab_size + 3;
  cases::Buffer buffer(DType::f32, num_rows * logits_stride);
  for (int32_t r = 0; r < num_rows; ++r) {
    std::copy(logits[size_t(r)].begin(), logits[size_t(r)].end(), buffer.as<float>() + r * logits_stride);
  }
  cases::Buffer workspace(DType::u8,
                          static_cast<int64_t>(table.sampling_workspace_bytes(num_rows, vocab_size, num_threads)));
  Sampled out;
  out.token_ids.assign(size_t(num_rows), -7);
  out.ranks.assign(size_t(num_rows), -7);
  out.logprob_ids.assign(size_t(num_rows * stride), -7);
  out.logprobs.assign(size_t(num_rows * stride), -7.0f);
  ThreadPool pool(num_threads);
  SamplingParamsBlock block;
  block.logits = buffer.as<float>();
  block.logits_stride = logits_stride;
  block.vocab_size = vocab_size;
  block.num_rows = num_rows;
  block.rows = rows.data();
  block.token_ids = out.token_ids.data();
  block.logprobs_mode = mode;
  block.logprobs_stride = stride;
  block.logprob_ids = out.logprob_ids.data();
  block.logprobs = out.logprobs.data();
  block.sampled_rank = out.ranks.data();
  block.workspace = workspace.data();
  block.workspace_bytes = workspace.size_bytes();
  table.sample(block, Stream{&pool});
  EXPECT_TRUE(buffer.guards_hold() && workspace.guards_hold());
  for (int32_t r = 0; r < num_rows; ++r) {
    for (int64_t i = vocab_size; i < logits_stride; ++i) EXPECT_TRUE(buffer.is_untouched(r * logits_stride + i));
  }
  return out;
}

int32_t sample_one(const KernelTable& table, const std::vector<float>& logits, const SamplingRow& row) {
  return sample(table, {logits}, {row}).token_ids[0];
}

std::vector<float> random_logits(int32_t n, uint64_t seed, double spread) {
  cases::Random random(seed);
  std::vector<float> x(size_t(n), 0.0f);
  for (float& v : x) v = static_cast<float>(spread * (random.uniform(-1, 1) + random.uniform(-1, 1)));
  return x;
}

// Which tokens stay, in the order min_p, top_k, top_p; written for clarity.
std::vector<bool> reference_filter(const std::vector<float>& x, const SamplingRow& row) {
  const size_t n = x.size();
  const double max = *std::max_element(x.begin(), x.end());
  std::vector<bool> stays(n, true);
  for (size_t i = 0; i < n; ++i) {
    if (row.min_p > 0.0f && std::exp(x[i] - max) < row.min_p) stays[i] = false;
  }
  std::vector<size_t> order;
  for (size_t i = 0; i < n; ++i) {
    if (stays[i]) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] > x[b]; });
  if (row.top_k > 0 && size_t(row.top_k) < order.size()) {
    const float kth = x[order[size_t(row.top_k) - 1]];
    while (x[order.back()] < kth) order.pop_back();
  }
  double total = 0.0, before = 0.0;
  for (const size_t i : order) total += std::exp(x[i] - max);
  std::fill(stays.begin(), stays.end(), false);
  for (const size_t i : order) {
    if (before >= row.top_p * total) break;
    stays[i] = true;
    before += std::exp(x[i] - max);
  }
  return stays;
}

int32_t reference_draw(std::vector<float> x, const SamplingRow& row) {
  for (float& v : x) v /= row.temperature;
  const std::vector<bool> stays = reference_filter(x, row);
  int32_t best_id = -1;
  float best = -kInf;
  for (size_t i = 0; i < x.size(); ++i) {
    const float value = x[i] + gumbel_from_bits(token_random_bits(row.seed, row.output_index, uint32_t(i)));
    if (stays[i] && value > best) {
      best = value;
      best_id = static_cast<int32_t>(i);
    }
  }
  return best_id;
}

class Sampling : public testing::TestWithParam<const KernelTable*> {};

TEST_P(Sampling, DrawsWhatTheReferenceDraws) {
  cases::Random random(11);
  std::vector<SamplingRow> settings(1);
  for (const float temperature : {1.0f, 0.3f, 2.5f}) {
    for (const int32_t top_k : {0, 1, 5, 40, 3000}) {
      for (const float top_p : {1.0f, 0.999f, 0.9f, 0.3f, 1e-6f}) {
        for (const float min_p : {0.0f, 0.05f, 1.0f}) {
          SamplingRow row;
          row.temperature = temperature;
          row.top_k = top_k;
          row.top_p = top_p;
          row.min_p = min_p;
          settings.push_back(row);
        }
      }
    }
  }
  for (const int32_t n : {1, 2, 37, 1000, 5003}) {
    for (SamplingRow row : settings) {
      row.seed = random.bits();
      row.output_index = static_cast<uint32_t>(random.below(1000));
      for (const double spread : {0.0, 1.0, 8.0}) {
        if (spread == 0.0 && row.top_p < 1.0f) continue;  // equal masses: the cut is a matter of rounding
        const std::vector<float> logits = random_logits(n, row.seed, spread);
        ASSERT_EQ(sample_one(*GetParam(), logits, row), reference_draw(logits, row))
            << "n " << n << " temperature " << row.temperature << " top_k " << row.top_k << " top_p " << row.top_p
            << " min_p " << row.min_p << " spread " << spread;
      }
    }
  }
}

// The vector noise is the scalar noise, for every lane and at the ends: a large constant noise-free logit is not
// needed, because with equal logits the draw is the argmax of the noise alone.
TEST_P(Sampling, NoiseHasTheBitsOfTheScalarFunctions) {
  for (const int32_t n : {1, 3, 4, 15, 16, 17, 63, 64, 65, 1000}) {
    for (uint64_t seed = 0; seed < 200; ++seed) {
      SamplingRow row;
      row.seed = seed * 0x9e3779b97f4a7c15ull;
      row.output_index = static_cast<uint32_t>(seed);
      const std::vector<float> equal(size_t(n), 0.5f);
      ASSERT_EQ(sample_one(*GetParam(), equal, row), reference_draw(equal, row)) << n << " " << seed;
    }
  }
}

TEST_P(Sampling, FollowsTheSoftmax) {
  const std::vector<float> logits = {0.3f, -1.0f, 2.0f, 1.1f, -kInf, 0.0f, 1.9f, -2.5f, 0.7f, -0.2f, 1.0f};
  for (const float temperature : {1.0f, 0.7f}) {
    constexpr int kDraws = 40000;
    std::vector<SamplingRow> rows(kDraws);
    for (int i = 0; i < kDraws; ++i) {  // half of them vary the seed, half the index
      rows[size_t(i)].temperature = temperature;
      rows[size_t(i)].seed = i % 2 == 0 ? static_cast<uint64_t>(i) : 42;
      rows[size_t(i)].output_index = i % 2 == 0 ? 3 : static_cast<uint32_t>(i);
    }
    const Sampled out = sample(*GetParam(), std::vector<std::vector<float>>(kDraws, logits), rows, 2);
    std::vector<double> counts(logits.size(), 0.0);
    for (const int32_t token : out.token_ids) counts.at(size_t(token)) += 1.0;
    double total = 0.0, chi_square = 0.0;
    for (const float x : logits) total += std::exp(static_cast<double>(x / temperature));
    for (size_t i = 0; i < logits.size(); ++i) {
      const double expected = kDraws * std::exp(static_cast<double>(logits[i] / temperature)) / total;
      if (expected > 0.0) chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
      if (expected == 0.0) {
        EXPECT_EQ(counts[i], 0.0);
      }
    }
    EXPECT_LT(chi_square, 27.9);  // 9 degrees of freedom, p = 0.001; the seeds are fixed
  }
}

TEST_P(Sampling, GreedyTakesTheLowestOfEquals) {
  SamplingRow greedy;
  greedy.temperature = 0.0f;
  for (const int32_t n : {1, 5, 16, 33, 1000, 4099}) {
    std::vector<float> logits = random_logits(n, uint64_t(n), 1.0);
    for (const int32_t at : {n - 1, n / 2, n / 3, 0}) {
      logits[size_t(at)] = 5.0f;  // the later ones stay
      EXPECT_EQ(sample_one(*GetParam(), logits, greedy), at) << n;
    }
  }
}

TEST_P(Sampling, BadLogitsGiveAToken) {
  const float nan = std::nanf("");
  SamplingRow greedy, random;
  greedy.temperature = 0.0f;
  random.top_p = 0.9f;
  random.top_k = 3;
  random.min_p = 0.1f;
  for (const SamplingRow& row : {greedy, random, SamplingRow{}}) {
    EXPECT_EQ(sample_one(*GetParam(), {nan, nan, 1.0f, nan, -kInf}, row), 2);
    EXPECT_EQ(sample_one(*GetParam(), {nan, nan, nan}, row), 0);
    EXPECT_EQ(sample_one(*GetParam(), std::vector<float>(100, -kInf), row), 0);
    EXPECT_EQ(sample_one(*GetParam(), {0.0f, kInf, 3.0f, kInf}, row), 1);
    SamplingRow limited = row;
    const std::vector<int32_t> allowed = {5, 3, 4}, banned = {3, 0};
    limited.banned_ids = banned.data();
    limited.num_banned_ids = 2;
    EXPECT_EQ(sample_one(*GetParam(), std::vector<float>(9, -kInf), limited), 1);
    limited.allowed_ids = allowed.data();
    limited.num_allowed_ids = 3;
    EXPECT_EQ(sample_one(*GetParam(), std::vector<float>(9, -kInf), limited), 4);
  }
}

TEST_P(Sampling, EditsComeInTheirOrder) {
  SamplingRow row;
  row.temperature = 0.0f;
  const std::vector<float> logits = {1.0f, 5.0f, 4.0f, -1.0f, 3.0f, 2.0f};
  const std::vector<int32_t> allowed = {0, 2, 3, 4}, banned = {2};
  row.allowed_ids = allowed.data();
  row.num_allowed_ids = 4;
  EXPECT_EQ(sample_one(*GetParam(), logits, row), 2);
  row.banned_ids = banned.data();
  row.num_banned_ids = 1;
  EXPECT_EQ(sample_one(*GetParam(), logits, row), 4);
  const std::vector<TokenBias> biases = {{0, 2.5f}, {2, 100.0f}, {1, 100.0f}};  // banned and forbidden ids stay out
  row.biases = biases.data();
  row.num_biases = 3;
  EXPECT_EQ(sample_one(*GetParam(), logits, row), 0);
  // Repetition acts on the biased logit 3.5 of token 0: 3.5 / 1.2 = 2.92 < 3.
  const std::vector<TokenCount> counts = {{0, 0}};
  row.counts = counts.data();
  row.num_counts = 1;
  EXPECT_EQ(sample_one(*GetParam(), logits, row), 0);
  row.repetition_penalty = 1.2f;
  EXPECT_EQ(sample_one(*GetParam(), logits, row), 4);
}

// A mask with these bits; what lies beyond the vocabulary is set, and must not matter.
std::vector<uint32_t> mask_of(int32_t n, const std::vector<int32_t>& ids) {
  std::vector<uint32_t> words(size_t(n + 31) / 32, 0u);
  if (n % 32 != 0) words.back() = ~0u << n % 32;
  for (const int32_t id : ids) words[size_t(id) / 32] |= 1u << id % 32;
  return words;
}

TEST_P(Sampling, MaskLimitsWhatIsDrawn) {
  cases::Random random(3);
  for (const int32_t n : {1, 31, 32, 33, 1000, 5003}) {
    for (int turn = 0; turn < 30; ++turn) {
      std::vector<float> logits = random_logits(n, random.bits(), 3.0), limited(size_t(n), -kInf);
      std::vector<int32_t> ids;
      for (int32_t id = 0; id < n; ++id) {
        if (random.below(turn % 3 == 0 ? 40 : 2) == 0) ids.push_back(id);
      }
      if (ids.empty()) ids.push_back(static_cast<int32_t>(random.below(n)));
      for (const int32_t id : ids) limited[size_t(id)] = logits[size_t(id)];
      for (const size_t hidden : {size_t{0}, size_t(n) - 1}) {  // a masked NaN is as masked as any
        if (limited[hidden] == -kInf) logits[hidden] = turn % 2 == 0 ? std::nanf("") : kInf;
      }
      const std::vector<uint32_t> mask = mask_of(n, ids);
      SamplingRow row;
      row.seed = random.bits();
      row.allowed_mask = mask.data();
      EXPECT_EQ(sample_one(*GetParam(), logits, row), reference_draw(limited, row)) << n;
      row.temperature = 0.0f;
      EXPECT_EQ(sample_one(*GetParam(), logits, row),
                std::max_element(limited.begin(), limited.end()) - limited.begin());
    }
  }
}

TEST_P(Sampling, MaskHoldsWhateverElseIsAsked) {
  SamplingRow row;
  const std::vector<float> logits = {9.0f, 8.0f, std::nanf(""), 7.0f, 6.0f};
  const std::vector<uint32_t> only_nan = mask_of(5, {2}), two = mask_of(5, {3, 4}), none = mask_of(5, {});
  row.allowed_mask = only_nan.data();
  EXPECT_EQ(sample_one(*GetParam(), logits, row), 2);
  row.allowed_mask = none.data();
  EXPECT_EQ(sample_one(*GetParam(), logits, row), 0);
  row.allowed_mask = two.data();
  const std::vector<int32_t> third = {3}, both = {3, 4}, other = {1};
  row.banned_ids = third.data();
  row.num_banned_ids = 1;
  EXPECT_EQ(sample_one(*GetParam(), logits, row), 4);
  row.banned_ids = both.data();
  row.num_banned_ids = 2;
  EXPECT_EQ(sample_one(*GetParam(), logits, row), 3);
  row.num_banned_ids = 0;
  row.allowed_ids = other.data();
  row.num_allowed_ids = 1;
  EXPECT_EQ(sample_one(*GetParam(), logits, row), 3);
}

TEST_P(Sampling, LogprobsDoNotSeeTheMask) {
  const std::vector<float> logits = random_logits(70, 8, 2.0);
  const std::vector<uint32_t> mask = mask_of(70, {69});
  SamplingRow row;
  row.num_logprobs = 2;
  const Sampled free = sample(*GetParam(), {logits}, {row}, 1, 3);
  row.allowed_mask = mask.data();
  const Sampled masked = sample(*GetParam(), {logits}, {row}, 1, 3);
  double total = 0.0;
  for (const float x : logits) total += std::exp(static_cast<double>(x));
  EXPECT_EQ(masked.token_ids[0], 69);
  EXPECT_NEAR(masked.logprobs[0], logits[69] - std::log(total), 1e-5);
  for (const size_t i : {size_t{1}, size_t{2}}) EXPECT_EQ(masked.logprobs[i], free.logprobs[i]);
}

TEST_P(Sampling, PenaltiesHaveTheirFormulas) {
  // Raw logprobs do not show penalties, so the values are read off by a bias that makes the token win or lose narrowly.
  const auto penalised = [&](float logit, int32_t output_count, float repetition, float frequency, float presence) {
    float low = -50.0f, high = 50.0f;
    for (int i = 0; i < 40; ++i) {
      const float middle = 0.5f * (low + high);
      SamplingRow row;
      row.temperature = 0.0f;
      const TokenCount count = {0, output_count};
      row.counts = &count;
      row.num_counts = 1;
      row.repetition_penalty = repetition;
      row.frequency_penalty = frequency;
      row.presence_penalty = presence;
      (sample_one(*GetParam(), {logit, middle}, row) == 0 ? low : high) = middle;
    }
    return low;
  };
  EXPECT_NEAR(penalised(3.0f, 4, 1.0f, 0.5f, 0.25f), 3.0 - 4 * 0.5 - 0.25, 1e-4);
  EXPECT_NEAR(penalised(3.0f, 0, 1.5f, 0.5f, 0.25f), 3.0 / 1.5, 1e-4);  // in the prompt only
  EXPECT_NEAR(penalised(-3.0f, 0, 1.5f, 0.0f, 0.0f), -3.0 * 1.5, 1e-4);
  EXPECT_NEAR(penalised(-3.0f, 1, 2.0f, -1.0f, -0.5f), -6.0 + 1.0 + 0.5, 1e-4);
}

TEST_P(Sampling, LogprobsAreOfTheRawLogits) {
  for (const int32_t n : {3, 40, 2000}) {
    std::vector<float> logits = random_logits(n, 5, 3.0);
    logits[1] = logits[0];  // a tie
    std::vector<int32_t> order(size_t(n), 0);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return logits[size_t(a)] > logits[size_t(b)]; });
    double total = 0.0;
    for (const float x : logits) total += std::exp(static_cast<double>(x));
    const std::vector<TokenBias> biases = {{1, 1000.0f}};
    for (const int32_t wanted : {0, 1, 3, 20}) {
      SamplingRow row;
      row.temperature = 0.5f;
      row.num_logprobs = wanted;
      row.biases = biases.data();
      row.num_biases = 1;
      const Sampled out = sample(*GetParam(), {logits}, {row}, 1, 21);
      EXPECT_EQ(out.token_ids[0], 1);
      EXPECT_EQ(out.logprob_ids[0], 1);
      EXPECT_NEAR(out.logprobs[0], logits[1] - std::log(total), 1e-5);
      int32_t rank = 0;
      for (const float x : logits) rank += x >= logits[1];
      EXPECT_EQ(out.ranks[0], rank);
      for (int32_t i = 0; i < wanted; ++i) {
        EXPECT_EQ(out.logprob_ids[size_t(1 + i)], i < n ? order[size_t(i)] : -1);
        if (i < n) {
          EXPECT_NEAR(out.logprobs[size_t(1 + i)], logits[size_t(order[size_t(i)])] - std::log(total), 1e-5);
        }
      }
      for (int32_t i = wanted; i < 20; ++i)
        EXPECT_EQ(out.logprob_ids[size_t(1 + i)], -7) << "written beyond what was asked";
    }
  }
}

// The token is given, whatever its logit; logprob, rank and the most likely tokens are those of the row.
TEST_P(Sampling, AForcedTokenIsReported) {
  constexpr int32_t n = 2000;
  const std::vector<float> logits = random_logits(n, 9, 3.0);
  double total = 0.0;
  for (const float x : logits) total += std::exp(static_cast<double>(x));
  for (const int32_t token : {0, 1, 777, n - 1}) {
    for (const float temperature : {0.0f, 0.7f}) {
      SamplingRow row;
      row.temperature = temperature;
      row.num_logprobs = 1;
      row.forced_token = token;
      const Sampled out = sample(*GetParam(), {logits}, {row}, 1, 2);
      EXPECT_EQ(out.token_ids[0], token);
      EXPECT_EQ(out.logprob_ids[0], token);
      EXPECT_NEAR(out.logprobs[0], logits[size_t(token)] - std::log(total), 1e-5);
      EXPECT_EQ(out.ranks[0], std::ranges::count_if(logits, [&](float x) { return x >= logits[size_t(token)]; }));
      EXPECT_EQ(out.logprob_ids[1], std::ranges::max_element(logits) - logits.begin());
    }
  }
}

// The whole row in each mode, against the filter of the reference.
TEST_P(Sampling, EveryModeReportsWhatItSays) {
  constexpr int32_t n = 700;
  const std::vector<TokenBias> biases = {{3, 4.0f}, {5, -2.0f}};
  for (int setting = 0; setting < 6; ++setting) {
    SamplingRow row;
    row.temperature = setting == 0 ? 0.0f : 0.6f;
    row.top_k = setting == 1 || setting == 4 ? 25 : 0;
    row.top_p = setting == 2 || setting == 4 ? 0.8f : 1.0f;
    row.min_p = setting == 3 || setting == 4 ? 0.02f : 0.0f;
    row.seed = 31;
    row.num_logprobs = n;
    row.biases = biases.data();
    row.num_biases = 2;
    const std::vector<float> logits = random_logits(n, 21, 2.0);
    std::vector<float> drawn_from = logits;
    for (const TokenBias& bias : biases) drawn_from[size_t(bias.token_id)] += bias.bias;
    if (setting > 0) {
      for (float& x : drawn_from) x /= row.temperature;
      const std::vector<bool> stays = reference_filter(drawn_from, row);
      for (size_t i = 0; i < n; ++i) drawn_from[i] = stays[i] ? drawn_from[i] : -kInf;
    }
    const int32_t token = sample(*GetParam(), {logits}, {row}, 1, n + 1).token_ids[0];
    for (const LogprobsMode mode : {LogprobsMode::raw_logprobs, LogprobsMode::raw_logits,
                                    LogprobsMode::processed_logprobs, LogprobsMode::processed_logits}) {
      const std::vector<float>& reported = is_processed(mode) ? drawn_from : logits;
      double total = 0.0;
      for (const float x : reported) total += std::exp(static_cast<double>(x));
      const Sampled out = sample(*GetParam(), {logits}, {row}, 1, n + 1, mode);
      EXPECT_EQ(out.token_ids[0], token);
      EXPECT_EQ(out.ranks[0], std::ranges::count_if(reported, [&](float x) { return x >= reported[size_t(token)]; }));
      for (size_t i = 0; i <= n; ++i) {
        const float x = reported[size_t(out.logprob_ids[i])];
        const double want = is_logits(mode) || x == -kInf ? x : x - std::log(total);
        ASSERT_TRUE(out.logprobs[i] == want || std::abs(out.logprobs[i] - want) < 1e-5)
            << "setting " << setting << " mode " << int(mode) << " entry " << i << ": " << out.logprobs[i] << " "
            << want;
        if (i > 1) {
          EXPECT_GE(out.logprobs[i - 1], out.logprobs[i]);
        }
      }
    }
  }
}

TEST_P(Sampling, RowsDoNotDependOnTheirBatch) {
  std::vector<std::vector<float>> logits;
  std::vector<SamplingRow> rows;
  for (int i = 0; i < 40; ++i) {
    logits.push_back(random_logits(3001, uint64_t(i), 4.0));
    SamplingRow row;
    row.temperature = i % 3 == 0 ? 0.0f : 0.8f;
    row.top_k = i % 4 * 7;
    row.top_p = i % 5 == 0 ? 0.8f : 1.0f;
    row.seed = uint64_t(i);
    row.num_logprobs = i % 2 == 0 ? 2 : -1;
    rows.push_back(row);
  }
  const Sampled one = sample(*GetParam(), logits, rows, 1, 3);
  const Sampled three = sample(*GetParam(), logits, rows, 3, 3);
  EXPECT_EQ(one.token_ids, three.token_ids);
  EXPECT_EQ(one.logprobs, three.logprobs);
  for (size_t i = 0; i < rows.size(); ++i)
    EXPECT_EQ(sample_one(*GetParam(), logits[i],
                         [&] {
                           SamplingRow alone = rows[i];
                           alone.num_logprobs = -1;
                           return alone;
                         }()),
              one.token_ids[i]);
}

INSTANTIATE_TEST_SUITE_P(, Sampling, testing::ValuesIn(tables_with_own(&KernelTable::sample)), table_name);

}  // namespace
}  // namespace quire
