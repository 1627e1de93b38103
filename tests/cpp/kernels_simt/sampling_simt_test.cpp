// Sampling on CUDA, emulated, against the CPU backend on copies of the same logits: every filter, edits, bad logits,
// logprobs, in three thread orders and in other batches.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "base/threads.h"
#include "cpu/cpu_kernels.h"
#include "cuda/sampling/keys.cuh"
#include "cuda/sampling/sampling.h"
#include "cuda/simt/engine.h"
#include "kernels/cases/kernel_case.h"
#include "params/philox.h"

namespace quire {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int32_t kUnwritten = -7;

struct Sampled {
  std::vector<int32_t> token_ids, logprob_ids, ranks;
  std::vector<float> logprobs;
  bool operator==(const Sampled&) const = default;
};

// A row and what it points to; lists are copied to arrays of their own length, so that a sanitizer sees their ends.
struct Case {
  std::vector<float> logits;
  SamplingRow row;
  std::vector<int32_t> allowed, banned;
  std::vector<TokenBias> biases;
  std::vector<TokenCount> counts;
  std::vector<uint32_t> mask;

  SamplingRow linked() const {
    SamplingRow linked = row;
    const auto link = [](const auto& list, auto*& pointer, int32_t& count) {
      pointer = list.empty() ? nullptr : list.data();
      count = static_cast<int32_t>(list.size());
    };
    link(allowed, linked.allowed_ids, linked.num_allowed_ids);
    link(banned, linked.banned_ids, linked.num_banned_ids);
    link(biases, linked.biases, linked.num_biases);
    link(counts, linked.counts, linked.num_counts);
    if (!mask.empty()) linked.allowed_mask = mask.data();
    return linked;
  }
};

// What the next runs report; the cases set it.
LogprobsMode g_mode = LogprobsMode::raw_logprobs;

using SampleFunction = void (*)(const SamplingParamsBlock&, Stream);

Sampled run(SampleFunction sample, size_t workspace_bytes, const std::vector<Case>& cases, int32_t stride,
            int64_t padding = 3) {
  const auto n = static_cast<int32_t>(cases[0].logits.size()), num_rows = static_cast<int32_t>(cases.size());
  const int64_t logits_stride = n + padding;
  cases::Buffer logits(DType::f32, num_rows * logits_stride);
  std::vector<SamplingRow> rows;
  for (int32_t r = 0; r < num_rows; ++r) {
    std::copy(cases[size_t(r)].logits.begin(), cases[size_t(r)].logits.end(), logits.as<float>() + r * logits_stride);
    rows.push_back(cases[size_t(r)].linked());
  }
  cases::Buffer workspace(DType::u8, static_cast<int64_t>(workspace_bytes));
  Sampled out;
  out.token_ids.assign(size_t(num_rows), kUnwritten);
  out.ranks.assign(size_t(num_rows), kUnwritten);
  out.logprob_ids.assign(size_t(num_rows * stride), kUnwritten);
  out.logprobs.assign(size_t(num_rows * stride), -7.0f);
  ThreadPool pool(1);
  SamplingParamsBlock block;
  block.logits = logits.as<float>();
  block.logits_stride = logits_stride;
  block.vocab_size = n;
  block.num_rows = num_rows;
  block.rows = rows.data();
  block.token_ids = out.token_ids.data();
  block.logprobs_mode = g_mode;
  block.logprobs_stride = stride;
  block.logprob_ids = stride > 0 ? out.logprob_ids.data() : nullptr;
  block.logprobs = stride > 0 ? out.logprobs.data() : nullptr;
  block.sampled_rank = stride > 0 ? out.ranks.data() : nullptr;
  block.workspace = workspace.data();
  block.workspace_bytes = workspace_bytes;
  sample(block, Stream{&pool});
  EXPECT_TRUE(logits.guards_hold() && workspace.guards_hold());
  for (int32_t r = 0; r < num_rows; ++r) {
    for (int64_t i = n; i < logits_stride; ++i) EXPECT_TRUE(logits.is_untouched(r * logits_stride + i));
  }
  return out;
}

Sampled run_simt(const std::vector<Case>& cases, int32_t stride, int64_t padding = 3) {
  const auto rows = static_cast<int64_t>(cases.size()), n = static_cast<int64_t>(cases[0].logits.size());
  return run(cuda::sample, cuda::sampling_workspace_bytes(rows, n, 1), cases, stride, padding);
}

Sampled run_cpu(const std::vector<Case>& cases, int32_t stride) {
  const KernelTable& table = *cpu::portable_kernels();
  const auto rows = static_cast<int64_t>(cases.size()), n = static_cast<int64_t>(cases[0].logits.size());
  return run(table.sample, table.sampling_workspace_bytes(rows, n, 1), cases, stride);
}

void expect_equal(const Sampled& got, const Sampled& want, const std::string& where) {
  EXPECT_EQ(got.token_ids, want.token_ids) << where;
  EXPECT_EQ(got.ranks, want.ranks) << where;
  EXPECT_EQ(got.logprob_ids, want.logprob_ids) << where;
  ASSERT_EQ(got.logprobs.size(), want.logprobs.size());
  for (size_t i = 0; i < want.logprobs.size(); ++i) {
    if (got.logprobs[i] == want.logprobs[i]) continue;  // infinities too
    EXPECT_NEAR(got.logprobs[i], want.logprobs[i], 2e-5) << where << " entry " << i;
  }
}

// Against the CPU in the first order, bit for bit in the others.
void check(const std::vector<Case>& cases, int32_t stride, const std::string& where) {
  simt::set_order(simt::Order::forward);
  const Sampled forward = run_simt(cases, stride);
  expect_equal(forward, run_cpu(cases, stride), where);
  for (const simt::Order order : {simt::Order::reverse, simt::Order::random}) {
    simt::set_order(order, 5);
    EXPECT_TRUE(run_simt(cases, stride) == forward) << where << ": another thread order, other results";
  }
  simt::set_order(simt::Order::forward);
}

std::vector<float> random_logits(int32_t n, uint64_t seed, double spread) {
  cases::Random random(seed);
  std::vector<float> x(size_t(n), 0.0f);
  for (float& v : x) v = static_cast<float>(spread * (random.uniform(-1, 1) + random.uniform(-1, 1)));
  return x;
}

Case make_case(int32_t n, uint64_t seed, double spread) {
  Case c;
  c.logits = random_logits(n, seed, spread);
  c.row.seed = seed * 0x9e3779b97f4a7c15ull;
  c.row.output_index = static_cast<uint32_t>(seed % 1000);
  return c;
}

TEST(SamplingSimt, NoiseHasTheBitsOfPhilox) {
  for (uint32_t i = 0; i < 1u << 23; ++i) {
    const uint32_t bits = i << 9 | 0x155;
    const float noise = gumbel_from_bits(bits);
    ASSERT_EQ(cuda::device_gumbel(bits), noise) << i;
    ASSERT_GE(cuda::gumbel_upper_bound(bits), noise) << i;
  }
}

TEST(SamplingSimt, EveryFilter) {
  for (const int32_t n : {1, 2, 31, 1000, 4097, 9001}) {
    for (const double spread : {0.0, 0.05, 1.0, 8.0}) {
      std::vector<Case> batch;
      uint64_t seed = static_cast<uint64_t>(n) * 7 + 1;
      for (const float temperature : {0.0f, 1.0f, 0.3f}) {
        for (const int32_t top_k : {0, 1, 40, 3000}) {
          for (const float top_p : {1.0f, 0.9f, 1e-6f}) {
            for (const float min_p : {0.0f, 0.05f}) {
              if (temperature == 0.0f && (top_k + min_p > 0.0f || top_p < 1.0f)) continue;
              if (spread == 0.0 && top_p < 1.0f && top_p > 0.1f) continue;  // equal masses: rounding decides the cut
              Case c = make_case(n, seed++, spread);
              c.row.temperature = temperature;
              c.row.top_k = top_k;
              c.row.top_p = top_p;
              c.row.min_p = min_p;
              batch.push_back(c);
            }
          }
        }
      }
      if (n < 5000) {
        check(batch, 0, "n " + std::to_string(n) + " spread " + std::to_string(spread));
      } else {
        expect_equal(run_simt(batch, 0), run_cpu(batch, 0), "n " + std::to_string(n));
      }
    }
  }
}

// Flat rows, so that the list overflows and the cut is found in the bins; the last ones overflow the cut as well.
TEST(SamplingSimt, FlatRowsAndTies) {
  std::vector<Case> batch;
  for (const float top_p : {0.95f, 0.5f, 1.0f}) {
    for (const int32_t top_k : {0, 7000, 20000}) {
      for (const float min_p : {0.0f, 0.2f}) {
        Case c = make_case(32003, 77 + batch.size(), 0.7);
        c.row.top_p = top_p;
        c.row.top_k = top_k;
        c.row.min_p = min_p;
        batch.push_back(c);
      }
    }
  }
  const size_t num_flat = batch.size();
  for (size_t i = 0; i < num_flat; i += 3) {  // few distinct values, so thousands of ties at each cut
    Case c = batch[i];
    for (float& x : c.logits) x = static_cast<float>(static_cast<int>(x * 2.0f)) * 0.5f;
    batch.push_back(c);
  }
  check(batch, 0, "flat");
}

TEST(SamplingSimt, BadLogits) {
  const float nan = std::nanf("");
  std::vector<Case> batch;
  for (const int setting : {0, 1, 2}) {
    for (const int kind : {0, 1, 2, 3, 4, 5}) {
      Case c = make_case(4500, 3, 2.0);
      if (setting == 0) c.row.temperature = 0.0f;
      if (setting == 1) c.row.top_k = 5, c.row.top_p = 0.9f, c.row.min_p = 0.1f;
      c.row.num_logprobs = 2;
      std::vector<float>& x = c.logits;
      if (kind == 0) std::fill(x.begin(), x.end(), nan);
      if (kind == 1) std::fill(x.begin(), x.end(), -kInf);
      if (kind == 2) {
        std::fill(x.begin(), x.end(), nan);
        x[4400] = 1.0f;
      }
      if (kind == 3) {
        for (size_t i = 0; i < x.size(); i += 2) x[i] = nan;
      }
      if (kind == 4) {
        std::fill(x.begin(), x.end(), -kInf);
        c.banned = {3, 0, 1, 4};
      }
      if (kind == 5) {
        c.allowed = {4099, 4497, 4098};
        c.banned = {4098, 4};
        for (const int32_t id : c.allowed) x[size_t(id)] = nan;
      }
      batch.push_back(c);
    }
  }
  check(batch, 3, "bad logits");
  for (Case& c : batch) {  // an infinite logit wins, the lowest of two
    c = make_case(4500, 3, 2.0);
    c.row.top_k = 3;
    c.row.top_p = 0.5f;
    c.logits[4200] = c.logits[4300] = kInf;
  }
  EXPECT_EQ(run_simt({batch[0]}, 0).token_ids[0], 4200);
}

// A row with lists of a kind, long or short.
Case make_edited(int32_t n, uint64_t seed, int32_t length) {
  cases::Random random(seed);
  Case c = make_case(n, seed, 3.0);
  c.row.repetition_penalty = 1.3f;
  c.row.frequency_penalty = 0.4f;
  c.row.presence_penalty = 0.2f;
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < n; ++i) ids.push_back(i);
  for (size_t i = ids.size(); i > 1; --i) std::swap(ids[i - 1], ids[size_t(random.below(int64_t(i)))]);
  const auto take = [&](int32_t count) { return std::vector<int32_t>(ids.begin(), ids.begin() + std::min(count, n)); };
  for (const int32_t id : take(length)) c.counts.push_back({id, static_cast<int32_t>(random.below(4))});
  // The same tokens, so that the order of the edits shows.
  for (const int32_t id : take(length)) c.biases.push_back({id, static_cast<float>(random.uniform(-6, 6))});
  if (length > 1) c.biases.push_back(c.biases[0]), c.biases.push_back({c.biases[0].token_id, 0.123f});
  std::rotate(ids.begin(), ids.begin() + n / 3, ids.end());
  if (seed % 2 == 0) c.banned = take(length);
  std::rotate(ids.begin(), ids.begin() + n / 3, ids.end());
  if (seed % 3 == 0) c.allowed = take(std::max(length, 2) * 2);
  return c;
}

TEST(SamplingSimt, Edits) {
  for (const int32_t n : {31, 4097, 9001}) {
    std::vector<Case> batch;
    for (const int32_t length : {0, 1, 300}) {
      for (const int setting : {0, 1, 2, 3}) {
        for (const int32_t num_logprobs : {-1, 3}) {
          Case c = make_edited(n, 11 * batch.size() + 1, length);
          c.row.temperature = setting == 0 ? 0.0f : 0.8f;
          if (setting >= 2) c.row.top_p = 0.95f;
          if (setting == 3) c.row.top_k = 20;
          c.row.num_logprobs = num_logprobs;
          batch.push_back(c);
        }
      }
    }
    check(batch, 4, "edits of " + std::to_string(n));
  }
}

TEST(SamplingSimt, Masks) {
  for (const int32_t n : {31, 4096, 4129, 9001}) {
    std::vector<Case> batch;
    for (const int kind : {0, 1, 2, 3, 4, 5}) {
      for (const int setting : {0, 1, 2}) {
        for (const int32_t num_logprobs : {-1, 2}) {
          const uint64_t seed = 6 * batch.size() + 1;
          Case c = kind < 2 ? make_case(n, seed, 3.0) : make_edited(n, seed, 40);
          cases::Random random(seed);
          c.mask.assign(size_t(n + 31) / 32, 0u);
          for (int32_t id = 0; id < n; ++id) {
            if (random.below(kind % 2 == 0 ? 3 : 50) == 0) c.mask[size_t(id) / 32] |= 1u << id % 32;
          }
          if (kind == 3) std::fill(c.mask.begin(), c.mask.end(), 0u);
          const int32_t only = n - 1 - static_cast<int32_t>(random.below(20));
          if (kind >= 3) c.mask[size_t(only) / 32] |= 1u << only % 32;
          if (kind == 4) std::fill(c.logits.begin(), c.logits.end(), std::nanf(""));
          if (kind == 5) std::fill(c.mask.begin(), c.mask.end(), 0u), c.logits.assign(size_t(n), -kInf);
          if (n % 32 != 0) c.mask.back() |= ~0u << n % 32;
          c.row.temperature = setting == 0 ? 0.0f : 0.8f;
          if (setting == 2) c.row.top_p = 0.95f, c.row.top_k = 20;
          c.row.num_logprobs = num_logprobs;
          batch.push_back(c);
        }
      }
    }
    check(batch, 3, "masks of " + std::to_string(n));
  }
}

TEST(SamplingSimt, Logprobs) {
  for (const int32_t n : {3, 1000, 5003}) {
    std::vector<Case> batch;
    for (const int32_t wanted : {-1, 0, 1, 20, 1500}) {
      for (const double spread : {1.0, 6.0}) {
        Case c = make_case(n, batch.size() + 1, spread);
        c.logits[1] = c.logits[0];
        c.logits[2] = -kInf;
        c.row.num_logprobs = wanted;
        batch.push_back(c);
      }
    }
    Case ties = make_case(n, 99, 0.0);
    ties.row.num_logprobs = 5;
    batch.push_back(ties);
    check(batch, 1501, "logprobs of " + std::to_string(n));
  }
}

TEST(SamplingSimt, ForcedTokens) {
  for (const int32_t n : {3, 5003}) {
    std::vector<Case> batch;
    for (const int32_t token : {0, n / 2, n - 1}) {
      for (const int setting : {0, 1, 2}) {
        Case c = make_case(n, batch.size() + 1, 4.0);
        c.row.temperature = setting == 0 ? 0.0f : 0.7f;
        c.row.top_k = setting == 2 ? 4 : 0;
        c.row.forced_token = token;
        c.row.num_logprobs = setting;
        batch.push_back(c);
      }
    }
    check(batch, 3, "forced tokens of " + std::to_string(n));
    for (size_t i = 0; i < batch.size(); ++i) {
      EXPECT_EQ(run_simt(batch, 3).token_ids[i], batch[i].row.forced_token);
    }
  }
}

// Every mode, with lists that hold all candidates, lists that overflow (flat rows) and ties at the cut.
TEST(SamplingSimt, EveryMode) {
  for (const LogprobsMode mode :
       {LogprobsMode::raw_logits, LogprobsMode::processed_logprobs, LogprobsMode::processed_logits}) {
    g_mode = mode;
    for (const int32_t n : {31, 9001}) {
      std::vector<Case> batch;
      for (const int setting : {0, 1, 2, 3, 4, 5}) {
        for (const double spread : {0.6, 5.0}) {
          Case c = spread > 1.0 ? make_edited(n, batch.size() + 1, 20) : make_case(n, batch.size() + 1, spread);
          c.row.temperature = setting == 0 ? 0.0f : 0.8f;
          if (setting == 2 || setting == 5) c.row.top_k = n / 2;
          if (setting == 3 || setting == 5) c.row.top_p = 0.9f;
          if (setting == 4 || setting == 5) c.row.min_p = 0.01f;
          c.row.num_logprobs = setting % 2 == 0 ? 12 : batch.size() % 3 == 0 ? -1 : 0;
          if (setting == 1) c.row.forced_token = n / 3;
          batch.push_back(c);
        }
      }
      check(batch, 13, "mode " + std::to_string(static_cast<int>(mode)) + " n " + std::to_string(n));
    }
  }
  g_mode = LogprobsMode::raw_logprobs;
}

// All that the cut leaves and all that it takes, where the list overflows and where the cut bins do, too.
TEST(SamplingSimt, ProcessedRowsEndAtTheCut) {
  g_mode = LogprobsMode::processed_logits;
  constexpr int32_t n = 9001;
  std::vector<Case> batch;
  for (const int kind : {0, 1, 2}) {
    for (const int setting : {0, 1, 2, 3}) {
      Case c = make_case(n, 50 + batch.size(), kind == 0 ? 0.7 : 5.0);
      if (kind == 2) {
        for (float& x : c.logits) x = static_cast<float>(static_cast<int>(x)) * 0.25f;
      }
      if (setting == 0) c.row.top_k = 6000;
      if (setting == 1) c.row.top_k = 5, c.row.top_p = 0.9f;
      if (setting == 2 && kind != 2) c.row.top_p = 0.97f;
      if (setting == 3) c.row.min_p = 0.05f;
      c.row.num_logprobs = n;
      batch.push_back(c);
    }
  }
  expect_equal(run_simt(batch, n + 1), run_cpu(batch, n + 1), "whole rows");
  g_mode = LogprobsMode::raw_logprobs;
}

TEST(SamplingSimt, RowsDoNotDependOnTheirBatch) {
  std::vector<Case> batch;
  for (int i = 0; i < 10; ++i) {
    Case c = make_edited(6001, uint64_t(i), i % 4 == 0 ? 0 : 50);
    c.row.temperature = i % 3 == 0 ? 0.0f : 0.8f;
    c.row.top_k = i % 4 * 7;
    c.row.top_p = i % 5 < 2 ? 0.8f : 1.0f;
    c.row.num_logprobs = i % 2 == 0 ? 2 : -1;
    batch.push_back(c);
  }
  const Sampled all = run_simt(batch, 3);
  std::vector<Case> reversed(batch.rbegin(), batch.rend());
  const Sampled backwards = run_simt(reversed, 3, 7);  // 6,008: rows at multiples of 16 bytes
  for (size_t i = 0; i < batch.size(); ++i) {
    const size_t j = batch.size() - 1 - i;
    const Sampled alone = run_simt({batch[i]}, 3);
    for (const Sampled* other : {&alone, &backwards}) {
      const size_t at = other == &alone ? 0 : j;
      EXPECT_EQ(other->token_ids[at], all.token_ids[i]) << i;
      EXPECT_EQ(other->ranks[at], all.ranks[i]) << i;
      for (size_t e = 0; e < 3; ++e) EXPECT_EQ(other->logprobs[3 * at + e], all.logprobs[3 * i + e]) << i;
    }
  }
}

TEST(SamplingSimt, ContractsAreChecked) {
  std::vector<Case> batch = {make_case(100, 1, 1.0)};
  EXPECT_ANY_THROW(run(cuda::sample, cuda::sampling_workspace_bytes(1, 100, 1) - 1, batch, 0));
}

}  // namespace
}  // namespace quire
