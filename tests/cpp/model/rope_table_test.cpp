// Rope tables against the frequencies that transformers 5.23's ROPE_INIT_FUNCTIONS computed for the same configurations
// (rounded to 8 digits; hidden_size 64, 4 heads), read back from the table's angles at position 1.
#include "model/rope_table.h"

#include <gtest/gtest.h>

#include <cmath>

#include "model/arch_registry.h"
#include "model/plain_kernels.h"

namespace quire {
namespace {

RopeSpec rope_of(const std::string& parameters, int64_t max_position_embeddings,
                 const std::string& architecture = "LlamaForCausalLM", Json changes = Json::object()) {
  Json config = test::tiny_llama();
  config["architectures"] = {architecture};
  config["head_dim"] = 16;
  config["max_position_embeddings"] = max_position_embeddings;
  config["rope_parameters"] = Json::parse(parameters);
  config.update(changes);
  return arch_registry().build(config).layers.front().attn.rope;
}

void expect_frequencies(const RopeSpec& rope, int64_t max_model_len, const std::vector<double>& frequencies,
                        double attention_factor) {
  const std::vector<float> table = rope_cos_sin(rope, 2, max_model_len);
  const size_t half = frequencies.size();
  ASSERT_EQ(table.size(), 4 * half);
  for (size_t i = 0; i < half; ++i) {
    EXPECT_FLOAT_EQ(table[i], static_cast<float>(attention_factor));  // position 0
    EXPECT_EQ(table[half + i], 0.0f);
    const double cosine = table[2 * half + i], sine = table[3 * half + i];
    EXPECT_NEAR(std::atan2(sine, cosine) / frequencies[i], 1.0, 1e-6) << "pair " << i;
    EXPECT_NEAR(std::hypot(sine, cosine), attention_factor, 1e-6);
  }
}

TEST(RopeTable, Linear) {
  expect_frequencies(
      rope_of(R"({"rope_type": "linear", "factor": 2.5, "rope_theta": 500000.0})", 128), 128,
      {0.40000001, 0.077569105, 0.015042412, 0.002917066, 0.00056568539, 0.00010969928, 2.1273183e-05, 4.1253543e-06},
      1.0);
}

TEST(RopeTable, DynamicDependsOnMaxModelLen) {
  const RopeSpec rope = rope_of(R"({"rope_type": "dynamic", "factor": 4.0, "rope_theta": 500000.0})", 2048);
  expect_frequencies(
      rope, 8192,
      {1.0, 0.13442932, 0.01807124, 0.0024293046, 0.00032656975, 4.3900545e-05, 5.9015206e-06, 7.9333734e-07}, 1.0);
  RopeSpec plain = rope;
  plain.scaling = RopeScaling::none;
  EXPECT_EQ(rope_cos_sin(rope, 9, 2048), rope_cos_sin(plain, 9, 2048));
  EXPECT_NE(rope_cos_sin(rope, 9, 2049), rope_cos_sin(plain, 9, 2049));
}

TEST(RopeTable, Llama3) {
  expect_frequencies(
      rope_of(R"({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 8192, "rope_theta": 500000.0})",
              131072),
      131072, {1.0, 0.19392276, 0.037606031, 0.0072926651, 0.00052484602, 3.4281024e-05, 6.6478697e-06, 1.2891732e-06},
      1.0);
}

TEST(RopeTable, Yarn) {
  expect_frequencies(
      rope_of(R"({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
                  "rope_theta": 1000000.0})",
              131072),
      131072, {1.0, 0.17782794, 0.031622779, 0.0042175599, 0.00050000002, 4.4456985e-05, 7.9056936e-06, 1.4058534e-06},
      1.138629436111989);
  expect_frequencies(
      rope_of(R"({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
                  "rope_theta": 1000000.0, "truncate": false, "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7,
                  "mscale_all_dim": 1.3})",
              131072),
      131072, {1.0, 0.17782794, 0.031622779, 0.0056234132, 0.00059567997, 4.4456985e-05, 7.9056936e-06, 1.4058534e-06},
      0.9295234923939468);
}

TEST(RopeTable, LongropeDependsOnMaxModelLen) {
  const RopeSpec rope = rope_of(R"({"rope_type": "longrope", "short_factor": [1, 1.05, 1.1, 1.2, 1.3, 1.5, 2, 2.5],
                  "long_factor": [1, 1.5, 2, 4, 8, 16, 32, 60], "rope_theta": 10000.0})",
                                131072, "Phi3ForCausalLM", {{"original_max_position_embeddings", 4096}});
  expect_frequencies(
      rope, 4096, {1.0, 0.30116931, 0.090909094, 0.026352312, 0.0076923077, 0.0021081853, 0.00050000002, 0.00012649111},
      1.1902380714238083);
  expect_frequencies(rope, 4097,
                     {1.0, 0.2108185, 0.050000001, 0.0079056947, 0.00125, 0.00019764237, 3.1250001e-05, 5.2704627e-06},
                     1.1902380714238083);
}

TEST(RopeTable, FarPositionsKeepTheirPrecision) {
  const RopeSpec rope = rope_of(R"({"rope_type": "default", "rope_theta": 10000.0})", 200000);
  const std::vector<float> table = rope_cos_sin(rope, 131072, 131072);
  for (const int64_t position : {1, 4096, 131071}) {
    for (int64_t i = 0; i < 8; ++i) {
      const long double angle = static_cast<long double>(position) * std::pow(10000.0L, -2.0L * i / 16.0L);
      EXPECT_NEAR(table[static_cast<size_t>(position * 16 + i)], std::cos(angle), 1e-7);
      EXPECT_NEAR(table[static_cast<size_t>(position * 16 + 8 + i)], std::sin(angle), 1e-7);
    }
  }
}

TEST(RopeTable, EqualityDecidesSharing) {
  const RopeSpec a = rope_of(R"({"rope_type": "linear", "factor": 2.5})", 128);
  EXPECT_TRUE(a == rope_of(R"({"type": "linear", "factor": 2.5, "rope_theta": 10000})", 128));
  EXPECT_FALSE(a == rope_of(R"({"rope_type": "linear", "factor": 2.0})", 128));
  EXPECT_FALSE(a == rope_of(R"({"rope_type": "linear", "factor": 2.5, "rope_theta": 9})", 128));
}

}  // namespace
}  // namespace quire
