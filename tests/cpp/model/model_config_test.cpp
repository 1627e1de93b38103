// Context length, dtype and end-of-sequence ids, with vLLM's rules and messages.
#include "model/model_config.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/check.h"
#include "base/log.h"
#include "model/plain_kernels.h"

namespace quire {
namespace {

using test::TestFolder;
using test::tiny_gpt2;
using test::tiny_llama;

Json with(Json config, const Json& changes) {
  if (!changes.is_null()) config.update(changes);
  return config;
}

int64_t max_model_len(const Json& changes, int64_t asked = 0) {
  return resolve_model_config(with(tiny_llama(), changes), "/nonexistent", "auto", asked).max_model_len;
}

std::string length_error(const Json& config, int64_t asked) {
  try {
    resolve_model_config(config, "/nonexistent", "auto", asked);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "";
}

TEST(MaxModelLen, SmallestOfTheKeys) {
  EXPECT_EQ(max_model_len({}), 32);
  EXPECT_EQ(max_model_len({{"max_seq_len", 20}, {"seq_length", 50}}), 20);
  EXPECT_EQ(max_model_len({{"model_max_length", 100}}), 100);
  EXPECT_EQ(max_model_len({}, 5), 5);
}

TEST(MaxModelLen, RopeScalingStretches) {
  EXPECT_EQ(max_model_len({{"rope_scaling", {{"type", "linear"}, {"factor", 2.5}}}}), 80);
  EXPECT_EQ(max_model_len({{"rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}}}), 64);
  const Json yarn = {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 16}};
  EXPECT_EQ(max_model_len({{"rope_scaling", yarn}}), 64);
  const Json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 16}};
  EXPECT_EQ(max_model_len({{"rope_scaling", llama3}}), 32);
  const Json longrope = {{"rope_type", "longrope"}, {"short_factor", {1, 1}}, {"long_factor", {2, 2}}, {"factor", 4.0}};
  EXPECT_EQ(max_model_len({{"rope_scaling", longrope}}), 32);
}

TEST(MaxModelLen, TooLong) {
  EXPECT_EQ(
      length_error(tiny_llama(), 33),
      "User-specified max_model_len (33) is greater than the derived max_model_len (max_position_embeddings=32 or "
      "model_max_length=None in model's config.json). This may lead to incorrect model outputs or CUDA errors. To "
      "allow overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1");
  EXPECT_NE(length_error(tiny_llama(), -1).find("must be at least 1, got -1"), std::string::npos);
  std::vector<std::string> warnings;
  set_log_sink([&](LogLevel, const std::string& message) { warnings.push_back(message); });
  for (const char* name : {"VLLM_ALLOW_LONG_MAX_MODEL_LEN", "QUIRE_ALLOW_LONG_MAX_MODEL_LEN"}) {
    setenv(name, "1", 1);
    EXPECT_EQ(max_model_len({}, 33), 33);
    setenv(name, "0", 1);
    EXPECT_NE(length_error(tiny_llama(), 33), "");
    unsetenv(name);
  }
  set_log_sink({});
  ASSERT_EQ(warnings.size(), 2u);
  EXPECT_NE(warnings[0].find("User-specified max_model_len (33)"), std::string::npos);
}

TEST(MaxModelLen, LearnedPositionsAreAHardLimit) {
  EXPECT_EQ(length_error(tiny_gpt2(), 9), "");
  setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1", 1);
  const std::string message = length_error(tiny_gpt2(), 10);
  unsetenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN");
  EXPECT_NE(message.find("max_model_len (10) is greater than the 9 positions"), std::string::npos) << message;
}

TEST(MaxModelLen, NothingKnown) {
  Json config = tiny_llama();
  config.erase("max_position_embeddings");
  std::vector<std::string> warnings;
  set_log_sink([&](LogLevel, const std::string& message) { warnings.push_back(message); });
  EXPECT_EQ(resolve_model_config(config, "/nonexistent", "auto", 0).max_model_len, 2048);
  EXPECT_EQ(resolve_model_config(config, "/nonexistent", "auto", 99999).max_model_len, 99999);
  set_log_sink({});
  EXPECT_EQ(warnings.size(), 1u);
}

TEST(ModelDtype, FromTheConfigurationOrTheCaller) {
  const auto dtype = [](const Json& changes, const char* asked) {
    return resolve_model_config(with(tiny_llama(), changes), "/nonexistent", asked, 0).dtype;
  };
  EXPECT_EQ(dtype({}, "auto"), DType::f32);
  EXPECT_EQ(dtype({{"torch_dtype", "bfloat16"}}, "auto"), DType::bf16);
  EXPECT_EQ(dtype({{"torch_dtype", "torch.float16"}}, "auto"), DType::f16);
  EXPECT_EQ(dtype({{"dtype", "float16"}, {"torch_dtype", "bfloat16"}}, "auto"), DType::f16);
  EXPECT_EQ(dtype({{"torch_dtype", "bfloat16"}}, "float"), DType::f32);
  EXPECT_EQ(dtype({{"torch_dtype", "bfloat16"}}, "half"), DType::f16);
  EXPECT_THROW(dtype({}, "int8"), InvalidArgument);
  EXPECT_THROW(dtype({{"torch_dtype", "float64"}}, "auto"), InvalidArgument);
}

TEST(EosTokenIds, GenerationConfigFirst) {
  const TestFolder folder;
  const auto ids = [&](const Json& changes) {
    return resolve_model_config(with(tiny_llama(), changes), folder.path(), "auto", 0).eos_token_ids;
  };
  EXPECT_EQ(ids({}), (std::vector<int32_t>{2}));
  EXPECT_EQ(ids({{"eos_token_id", {5, 3, 5}}}), (std::vector<int32_t>{5, 3}));
  EXPECT_EQ(ids({{"eos_token_id", nullptr}}), (std::vector<int32_t>{}));
  EXPECT_EQ(ids({{"eos_token_id", -1}}), (std::vector<int32_t>{}));
  EXPECT_EQ(ids({{"eos_token_id", 11}}), (std::vector<int32_t>{}));  // beyond the vocabulary
  EXPECT_THROW(ids({{"eos_token_id", "</s>"}}), InvalidArgument);
  folder.write("generation_config.json", R"({"eos_token_id": [7, 2, 4]})");
  EXPECT_EQ(ids({}), (std::vector<int32_t>{7, 2, 4}));
  EXPECT_EQ(ids({{"eos_token_id", 9}}), (std::vector<int32_t>{7, 2, 4, 9}));
  folder.write("generation_config.json", "{");
  EXPECT_THROW(ids({}), InvalidArgument);
}

}  // namespace
}  // namespace quire
