// How models become pooling models: names, heads, poolers, sentence-transformers files, and what is refused.
// That they compute what transformers computes is tested in tests/python/models.
#include "model/pooling_arch.h"

#include <gtest/gtest.h>

#include "base/check.h"
#include "model/arch_registry.h"
#include "model/plain_kernels.h"
#include "model/pooler.h"

namespace quire {
namespace {

using test::TestFolder;

Json tiny(const std::string& architecture, const Json& changes = Json::object()) {
  Json config = test::tiny_llama();
  config["architectures"] = {architecture};
  config.update(changes);
  return config;
}

Json tiny_bert(const std::string& architecture, const Json& changes = Json::object()) {
  Json config = Json::parse(R"({"vocab_size": 11, "hidden_size": 6, "intermediate_size": 5, "num_hidden_layers": 2,
    "num_attention_heads": 3, "max_position_embeddings": 16, "hidden_act": "gelu"})");
  config["architectures"] = {architecture};
  config.update(changes);
  return config;
}

ArchSpec resolved(const Json& config, const PoolerOptions& options, const SentenceTransformersConfig& files = {}) {
  ArchSpec arch = arch_registry().build_pooling(config);
  resolve_pooler(config, files, options, arch);
  return arch;
}

template <typename Error, typename Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "(no error)";
}

bool has_rule(const ArchSpec& arch, const std::string& name) {
  return std::ranges::any_of(arch.weights.rules, [&](const WeightRule& rule) { return rule.name == name; });
}

TEST(PoolingArch, DecodersUnderEveryName) {
  for (const char* name : {"LlamaForCausalLM", "LlamaModel", "Qwen3ForCausalLM", "Qwen3Model", "Qwen2Model",
                           "MistralModel", "GPT2LMHeadModel", "GPT2Model"}) {
    const Json config = std::string_view(name).starts_with("GPT2") ? [&] {
      Json gpt2 = test::tiny_gpt2();
      gpt2["architectures"] = {name};
      return gpt2;
    }()
                                                                   : tiny(name);
    const ArchSpec arch = arch_registry().build_pooling(config);
    EXPECT_EQ(arch.name, name);
    EXPECT_FALSE(arch.has_lm_head) << name;
    EXPECT_FALSE(has_rule(arch, "lm_head.weight")) << name;
    EXPECT_EQ(arch.pooler.type, PoolingType::last);
    EXPECT_TRUE(arch.layers.front().attn.causal);
  }
}

TEST(PoolingArch, UnknownNamesListWhatThereIs) {
  const std::string message = error_of<InvalidArgument>([] { arch_registry().build_pooling(tiny("NeuralToaster")); });
  EXPECT_NE(message.find("['NeuralToaster'] are not supported"), std::string::npos) << message;
  EXPECT_NE(message.find("'BertModel'"), std::string::npos) << message;
  EXPECT_NE(message.find("'LlamaForCausalLM'"), std::string::npos) << message;
}

TEST(PoolingArch, EncodersGenerateNothing) {
  const std::string message = error_of<InvalidArgument>([] { arch_registry().build(tiny_bert("BertModel")); });
  EXPECT_NE(message.find("BertModel generates no text"), std::string::npos) << message;
}

TEST(PoolingArch, Classifiers) {
  const Json config = tiny("Qwen2ForSequenceClassification", {{"id2label", {{"0", "a"}, {"1", "b"}, {"2", "c"}}}});
  const ArchSpec arch = resolved(config, {.task = "classify"});
  ASSERT_EQ(arch.pooler.head.size(), 1u);
  EXPECT_EQ(arch.pooler.head[0].inputs, 6);
  EXPECT_EQ(arch.pooler.head[0].outputs, 3);
  EXPECT_FALSE(arch.pooler.head[0].bias);
  EXPECT_TRUE(has_rule(arch, "score.weight"));
  EXPECT_EQ(arch.pooler.activation, PoolingActivation::softmax);
}

TEST(PoolingArch, ActivationOfClassifiers) {
  const auto activation = [](const Json& changes, const char* task) {
    return resolved(tiny_bert("BertForSequenceClassification", changes), {.task = task}).pooler.activation;
  };
  EXPECT_EQ(activation({{"num_labels", 2}}, "classify"), PoolingActivation::softmax);
  EXPECT_EQ(activation({{"num_labels", 1}}, "classify"), PoolingActivation::sigmoid);
  EXPECT_EQ(activation({{"problem_type", "regression"}}, "classify"), PoolingActivation::none);
  EXPECT_EQ(activation({{"problem_type", "multi_label_classification"}}, "classify"), PoolingActivation::sigmoid);
  EXPECT_EQ(activation({{"num_labels", 1}}, "score"), PoolingActivation::sigmoid);
  EXPECT_EQ(activation({{"num_labels", 3}}, "score"), PoolingActivation::none);
  const Json identity = {{"num_labels", 1},
                         {"sbert_ce_default_activation_function", "torch.nn.modules.linear.Identity"}};
  EXPECT_EQ(activation(identity, "score"), PoolingActivation::none);
  const Json newer = {{"num_labels", 2},
                      {"sentence_transformers", {{"activation_fn", "torch.nn.modules.activation.Sigmoid"}}}};
  EXPECT_EQ(activation(newer, "score"), PoolingActivation::sigmoid);
  const Json evil = {{"sbert_ce_default_activation_function", "os.system"}};
  EXPECT_NE(error_of<InvalidArgument>([&] { activation(evil, "score"); }).find("\"os.system\""), std::string::npos);
}

TEST(PoolingArch, RewardModels) {
  const ArchSpec outcome = resolved(tiny("Qwen2ForRewardModel"), {.task = "reward"});
  ASSERT_EQ(outcome.pooler.head.size(), 2u);
  EXPECT_EQ(outcome.pooler.head[0].activation, Activation::relu);
  EXPECT_EQ(outcome.pooler.head[1].outputs, 1);
  EXPECT_EQ(outcome.pooler.type, PoolingType::all);
  EXPECT_TRUE(has_rule(outcome, "score.2.bias"));
  const ArchSpec process = resolved(tiny("Qwen2ForProcessRewardModel"), {.task = "reward", .step_tag_id = 7});
  EXPECT_EQ(process.pooler.type, PoolingType::step);
  EXPECT_EQ(process.pooler.activation, PoolingActivation::softmax);
  EXPECT_EQ(process.pooler.step_tag_id, 7);
  const ArchSpec plain = resolved(tiny("LlamaForCausalLM"), {.task = "reward"});
  EXPECT_TRUE(plain.pooler.head.empty());
  EXPECT_EQ(plain.pooler.type, PoolingType::all);
}

TEST(PoolingArch, TasksWithoutAHeadAreRefused) {
  for (const char* task : {"classify", "score", "reward"}) {
    const std::string message = error_of<InvalidArgument>([&] { resolved(tiny_bert("BertModel"), {.task = task}); });
    EXPECT_NE(message.find(str_cat("does not support the '", task, "' task")), std::string::npos) << message;
  }
  EXPECT_NE(error_of<InvalidArgument>([] { resolved(tiny("LlamaModel"), {.task = "dance"}); }).find("\"dance\""),
            std::string::npos);
}

TEST(PoolingArch, EmbeddingDropsAClassifier) {
  const ArchSpec arch = resolved(tiny_bert("BertForSequenceClassification"), {.task = "embed"});
  EXPECT_TRUE(arch.pooler.head.empty());
  EXPECT_FALSE(has_rule(arch, "classifier.weight"));
  EXPECT_NE(std::ranges::find(arch.weights.ignored, "classifier.weight"), arch.weights.ignored.end());
  EXPECT_EQ(arch.pooler.activation, PoolingActivation::normalize);
}

TEST(PoolingArch, WhatTheCallerSaysWins) {
  const SentenceTransformersConfig files = {.pooling = PoolingType::mean, .normalizes = true};
  const Json config = tiny_bert("BertModel");
  EXPECT_EQ(resolved(config, {}).pooler.type, PoolingType::cls);
  EXPECT_EQ(resolved(config, {}, files).pooler.type, PoolingType::mean);
  const ArchSpec arch = resolved(config, {.pooling_type = "last", .normalize = false}, files);
  EXPECT_EQ(arch.pooler.type, PoolingType::last);
  EXPECT_EQ(arch.pooler.activation, PoolingActivation::none);
  EXPECT_EQ(resolved(config, {}, {.pooling = PoolingType::mean}).pooler.activation, PoolingActivation::none);
  EXPECT_NE(error_of<InvalidArgument>([&] { resolved(config, {.pooling_type = "MAX"}); }).find("'MAX'"),
            std::string::npos);
  EXPECT_NE(error_of<InvalidArgument>([&] { resolved(config, {.returned_token_ids = {6}}); }).find("column 6"),
            std::string::npos);
}

TEST(SentenceTransformers, ReadsItsFiles) {
  const TestFolder folder;
  folder.write("modules.json",
               R"([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    {"idx": 3, "name": "3", "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"}])");
  folder.write("sentence_bert_config.json", R"({"max_seq_length": 12, "do_lower_case": false})");
  std::filesystem::create_directory(folder.path() / "1_Pooling");
  std::filesystem::create_directory(folder.path() / "2_Dense");
  folder.write("1_Pooling/config.json", R"({"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true})");
  folder.write("2_Dense/config.json", R"({"in_features": 6, "out_features": 4, "bias": false,
    "activation_function": "torch.nn.modules.activation.Tanh"})");
  const SentenceTransformersConfig files = read_sentence_transformers(folder.path());
  EXPECT_EQ(files.pooling, PoolingType::mean);
  EXPECT_TRUE(files.normalizes);
  EXPECT_EQ(files.max_seq_length, 12);
  ASSERT_EQ(files.dense.size(), 1u);
  const ArchSpec arch = resolved(tiny_bert("BertModel"), {}, files);
  ASSERT_EQ(arch.pooler.head.size(), 1u);
  EXPECT_EQ(arch.pooler.head[0].activation, Activation::tanh);
  EXPECT_TRUE(has_rule(arch, "2_Dense/linear.weight"));
  EXPECT_FALSE(has_rule(arch, "2_Dense/linear.bias"));
  EXPECT_EQ(pooled_columns(arch, true), 4);
}

TEST(SentenceTransformers, JoinsModes) {
  const TestFolder folder;
  folder.write("modules.json", R"([{"path": "", "type": "sentence_transformers.models.Pooling"}])");
  const auto arch_of = [&](const char* config) {
    folder.write("config.json", config);
    return resolved(tiny_bert("BertModel"), {}, read_sentence_transformers(folder.path()));
  };
  const ArchSpec two = arch_of(R"({"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true})");
  EXPECT_EQ(two.pooler.type, PoolingType::modes);
  EXPECT_EQ(pooling_name(two.pooler), "max + mean");
  EXPECT_EQ(pooled_columns(two, true), 12);
  EXPECT_EQ(pooled_columns(two, PoolingType::all, true), 6);
  EXPECT_EQ(arch_of(R"({"pooling_mode": ["mean"], "pooling_mode_cls_token": true})").pooler.type, PoolingType::mean);
  EXPECT_EQ(arch_of(R"({"pooling_mode": "lasttoken"})").pooler.type, PoolingType::last);
  EXPECT_EQ(pooling_name(arch_of(R"({"pooling_mode": "weightedmean"})").pooler), "weightedmean");
  EXPECT_EQ(arch_of("{}").pooler.type, PoolingType::mean);
}

TEST(SentenceTransformers, SaysWhatIsMissingOrUnknown) {
  const TestFolder folder;
  EXPECT_FALSE(read_sentence_transformers(folder.path()).pooling.has_value());
  folder.write("modules.json", R"([{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}])");
  EXPECT_NE(error_of<InvalidArgument>([&] { read_sentence_transformers(folder.path()); }).find("1_Pooling/config.json"),
            std::string::npos);
  std::filesystem::create_directory(folder.path() / "1_Pooling");
  folder.write("1_Pooling/config.json", R"({"pooling_mode": ["mean", "median"]})");
  const std::string modes = error_of<InvalidArgument>([&] { read_sentence_transformers(folder.path()); });
  EXPECT_NE(modes.find("Invalid pooling mode: \"median\""), std::string::npos) << modes;
  folder.write("modules.json", R"([{"path": "1_LSTM", "type": "sentence_transformers.models.LSTM"}])");
  const std::string module = error_of<NotSupported>([&] { read_sentence_transformers(folder.path()); });
  EXPECT_NE(module.find("sentence_transformers.models.LSTM"), std::string::npos) << module;
  folder.write("modules.json", "{}");
  EXPECT_NE(error_of<InvalidArgument>([&] { read_sentence_transformers(folder.path()); }).find("no list of modules"),
            std::string::npos);
}

}  // namespace
}  // namespace quire
