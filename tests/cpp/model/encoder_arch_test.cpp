// What the families of encoders make of their config.json: positions, windows, rotation, defaults of missing keys.
// That the specs compute what transformers computes is tested in tests/python/models.
#include "model/encoder_arch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <list>

#include "base/check.h"
#include "model/arch_registry.h"
#include "model/pooler.h"
#include "model/relative_bias.h"
#include "model/token_labels.h"
#include "model/weight_match.h"

namespace quire {
namespace {

Json tiny(const std::string& architecture, const Json& changes = Json::object()) {
  Json config = Json::parse(R"({"vocab_size": 11, "hidden_size": 12, "intermediate_size": 5, "num_hidden_layers": 4,
    "num_attention_heads": 3, "max_position_embeddings": 16})");
  config["architectures"] = {architecture};
  config.update(changes);
  return config;
}

ArchSpec build(const Json& config) { return arch_registry().build_pooling(config); }

template <typename Error>
std::string build_error(const Json& config) {
  try {
    build(config);
  } catch (const Error& error) {
    return error.what();
  }
  return "(no error)";
}

TEST(EncoderArch, RobertaBeginsBehindThePaddingToken) {
  const ArchSpec arch = build(tiny("RobertaModel", {{"pad_token_id", 1}}));
  EXPECT_EQ(arch.learned_positions->offset, 2);
  EXPECT_EQ(arch.learned_positions->max_positions, 14);
  EXPECT_EQ(arch.max_positions, 14);
  EXPECT_EQ(arch.max_positions_key, "max_position_embeddings");
  EXPECT_EQ(build(tiny("CamembertModel")).learned_positions->offset, 2);  // pad_token_id is 1 when nothing is said
  const std::string message = build_error<InvalidArgument>(tiny("RobertaModel", {{"pad_token_id", 15}}));
  EXPECT_NE(message.find("\"max_position_embeddings\" (16)"), std::string::npos) << message;
}

TEST(EncoderArch, MpnetHasPositionsOfItsOwnPaddingToken) {
  const ArchSpec arch = build(tiny("MPNetModel", {{"pad_token_id", 5}}));
  EXPECT_EQ(arch.learned_positions->offset, 2);
  EXPECT_EQ(arch.max_positions, 14);
  EXPECT_EQ(arch.num_token_types, 0);
  EXPECT_EQ(arch.relative_bias->num_buckets, 32);
  EXPECT_EQ(arch.relative_bias->max_distance, 128);
  EXPECT_NE(build_error<NotSupported>(tiny("MPNetModel", {{"relative_attention_num_buckets", 64}}))
                .find("\"relative_attention_num_buckets\" has the value 64"),
            std::string::npos);
}

TEST(EncoderArch, T5AndMt5DifferInDefaults) {
  Json config = {{"architectures", {"T5EncoderModel"}}, {"vocab_size", 11}, {"d_model", 12}};
  const ArchSpec t5 = build(config);
  EXPECT_EQ(t5.layers.size(), 6u);
  EXPECT_EQ(t5.layers[0].attn.num_heads, 8);
  EXPECT_EQ(t5.layers[0].attn.head_dim, 64);
  EXPECT_EQ(t5.layers[0].attn.scale, 1.0f);
  EXPECT_FALSE(std::get<DenseFfn>(t5.layers[0].ffn).gated);
  EXPECT_EQ(std::get<DenseFfn>(t5.layers[0].ffn).activation, Activation::relu);
  EXPECT_EQ(std::get<DenseFfn>(t5.layers[0].ffn).width, 2048);
  config["architectures"] = {"MT5EncoderModel"};
  const ArchSpec mt5 = build(config);
  EXPECT_EQ(mt5.layers.size(), 8u);
  EXPECT_EQ(mt5.layers[0].attn.num_heads, 6);
  EXPECT_TRUE(std::get<DenseFfn>(mt5.layers[0].ffn).gated);
  EXPECT_EQ(std::get<DenseFfn>(mt5.layers[0].ffn).activation, Activation::gelu_tanh);
  EXPECT_EQ(std::get<DenseFfn>(mt5.layers[0].ffn).width, 1024);
  config["relative_attention_max_distance"] = 8;
  EXPECT_NE(build_error<InvalidArgument>(config).find("\"relative_attention_max_distance\" (8)"), std::string::npos);
}

// The table of the paper's code for 32 buckets up to a distance of 128.
TEST(RelativeBias, BucketsWidenWithDistance) {
  const RelativeBias spec;
  const std::pair<int32_t, int64_t> firsts[] = {{0, 0},   {1, 1},   {7, 7},   {8, 8},   {12, 9}, {16, 10},
                                                {23, 11}, {32, 12}, {46, 13}, {64, 14}, {91, 15}};
  for (const auto& [distance, bucket] : firsts) {
    EXPECT_EQ(relative_bucket(spec, -distance), bucket) << distance;
    if (distance > 0) {
      EXPECT_EQ(relative_bucket(spec, distance), 16 + bucket) << distance;
      EXPECT_EQ(relative_bucket(spec, 1 - distance), bucket - 1) << distance;
    }
  }
  EXPECT_EQ(relative_bucket(spec, -128), 15);
  EXPECT_EQ(relative_bucket(spec, 100000), 31);
}

TEST(RelativeBias, BucketsBecomeDistances) {
  const RelativeBias spec{.num_buckets = 4, .max_distance = 2};  // buckets: itself, before, of none, after
  const float buckets[] = {1, 10, 2, 20, 3, 30, 4, 40};          // [bucket, head]
  const auto of_heads = [&](int64_t first_head, int64_t num_heads) {
    const std::vector<std::byte> biases =
        relative_bias_by_distance(spec, buckets, DType::f32, 2, first_head, num_heads);
    const auto* values = reinterpret_cast<const float*>(biases.data());
    return std::vector<float>(values, values + biases.size() / sizeof(float));
  };
  EXPECT_EQ(of_heads(0, 2), (std::vector<float>{2, 2, 1, 4, 4, 20, 20, 10, 40, 40}));
  EXPECT_EQ(of_heads(1, 1), (std::vector<float>{20, 20, 10, 40, 40}));
}

TEST(EncoderArch, DistilBertHasKeysOfItsOwn) {
  Json config = Json::parse(R"({"architectures": ["DistilBertModel"], "vocab_size": 11, "dim": 12, "hidden_dim": 5,
    "n_layers": 2, "n_heads": 3})");
  const ArchSpec arch = build(config);
  EXPECT_EQ(arch.hidden, 12);
  EXPECT_EQ(arch.layers.size(), 2u);
  EXPECT_EQ(arch.num_token_types, 0);
  EXPECT_EQ(arch.learned_positions->max_positions, 512);
  EXPECT_EQ(arch.layers[0].norm.eps, 1e-12f);
}

TEST(EncoderArch, ModernBertAlternates) {
  const ArchSpec arch = build(tiny("ModernBertModel", {{"local_attention", 8}}));
  ASSERT_EQ(arch.layers.size(), 4u);
  EXPECT_FALSE(arch.layers[0].attn_norm);
  EXPECT_TRUE(arch.layers[1].attn_norm);
  for (const size_t i : {0, 3}) {
    EXPECT_EQ(arch.layers[i].attn.window, 0) << i;
    EXPECT_EQ(arch.layers[i].attn.rope.theta, 160000.0) << i;
  }
  for (const size_t i : {1, 2}) {
    EXPECT_EQ(arch.layers[i].attn.window, 5) << i;  // the key four away is seen
    EXPECT_EQ(arch.layers[i].attn.rope.theta, 10000.0) << i;
  }
  EXPECT_EQ(build(tiny("ModernBertModel", {{"global_attn_every_n_layers", 2}})).layers[2].attn.window, 0);
  EXPECT_EQ(build(tiny("ModernBertModel")).layers[1].attn.window, 65);
}

TEST(EncoderArch, GteTurnsFixedNtkIntoAThetaAndAFactor) {
  const Json scaling = {{"type", "ntk"}, {"factor", 8.0}};
  const ArchSpec arch = build(tiny("NewModel", {{"rope_theta", 20000.0}, {"rope_scaling", scaling}}));
  const RopeSpec& rope = arch.layers[0].attn.rope;
  EXPECT_EQ(rope.theta, 160000.0);
  EXPECT_EQ(rope.scaling, RopeScaling::linear);
  EXPECT_DOUBLE_EQ(rope.factor, std::sqrt(8.0));  // 8^(2/4)
  EXPECT_EQ(arch.max_positions, 16);              // which the factor does not stretch
  EXPECT_EQ(arch.num_token_types, 1);
  const Json smaller = {{"type", "ntk"}, {"factor", 0.5}};
  EXPECT_NE(build_error<InvalidArgument>(tiny("NewModel", {{"rope_scaling", smaller}})).find("at least 1"),
            std::string::npos);
}

TEST(EncoderArch, NomicHasTheKeysOfGpt2OrOfBert) {
  const ArchSpec own = build(tiny("NomicBertModel"));
  EXPECT_EQ(own.layers[0].attn.rope.theta, 1000.0);
  EXPECT_FALSE(own.layers[0].attn.qkv_bias);
  const Json config = Json::parse(R"({"architectures": ["NomicBertModel"], "vocab_size": 11, "n_embd": 12, "n_head": 3,
    "n_layer": 2, "n_positions": 8192, "mlp_fc1_bias": false, "qkv_proj_bias": false, "activation_function": "geglu",
    "rotary_emb_fraction": 0.5, "pad_vocab_size_multiple": 8})");
  const ArchSpec arch = build(config);
  const auto& ffn = std::get<DenseFfn>(arch.layers[0].ffn);
  EXPECT_EQ(ffn.width, 48);
  EXPECT_EQ(ffn.activation, Activation::gelu);
  EXPECT_FALSE(ffn.bias);
  EXPECT_TRUE(ffn.has_down_bias());
  EXPECT_EQ(arch.vocab_size, 16);
  EXPECT_EQ(arch.layers[0].attn.rope.rotary_dim, 2);
  EXPECT_EQ(arch.max_positions, 2048);
  EXPECT_EQ(arch.max_positions_key, "max_trained_positions");
  Json mixed = config;
  mixed["mlp_fc1_bias"] = true;
  mixed["mlp_fc2_bias"] = false;
  EXPECT_NE(build_error<NotSupported>(mixed).find("mlp_fc1_bias"), std::string::npos);
}

TEST(EncoderArch, JinaV3IsXlmRobertaWithRotation) {
  const ArchSpec arch = build(tiny("XLMRobertaModel", {{"position_embedding_type", "rotary"}}));
  EXPECT_FALSE(arch.learned_positions.has_value());
  EXPECT_EQ(arch.layers[0].attn.rope.theta, 20000.0);
  EXPECT_EQ(arch.weights.spellings.size(), 3u);
  EXPECT_TRUE(build(tiny("XLMRobertaModel")).learned_positions.has_value());
}

TEST(EncoderArch, LateInteractionKeepsItsHead) {
  ArchSpec arch = build(tiny("HF_ColBERT", {{"colbert_dim", 7}}));
  resolve_pooler(tiny("HF_ColBERT"), {}, {.task = "embed"}, arch);
  EXPECT_EQ(arch.pooler.type, PoolingType::all);
  EXPECT_EQ(arch.pooler.activation, PoolingActivation::normalize);
  EXPECT_EQ(pooled_columns(arch, true), 7);
  EXPECT_EQ(build(tiny("HF_ColBERT")).pooler.head.front().outputs, 128);
}

// The tensors that a spelling of `arch` asks for, all zeros but where `values` is read.
class Stored {
 public:
  Stored(const ArchSpec& arch, size_t spelling) {
    for (const auto& [name, entry] : bind_rules(arch, spelling)) {
      int64_t count = 1;
      for (const int64_t size : entry.shape) count *= size;
      data_.emplace_back(static_cast<size_t>(count));
      tensors_.push_back({name, DType::f32, entry.shape, data_.back().data()});
    }
  }
  std::vector<CheckpointTensor> tensors() const { return tensors_; }

 private:
  std::list<std::vector<float>> data_;
  std::vector<CheckpointTensor> tensors_;
};

TEST(WeightSpellings, TheOneThatFitsIsTaken) {
  const ArchSpec arch = build(tiny("GteModel"));
  for (size_t spelling = 0; spelling < arch.weights.spellings.size(); ++spelling) {
    const Stored stored(arch, spelling);
    std::vector<CheckpointTensor> tensors = stored.tensors();
    for (CheckpointTensor& tensor : tensors) tensor.name = "gte." + tensor.name;
    const auto found = match_weights(arch, *checkpoint_in_memory(tensors));
    EXPECT_EQ(found.size(), tensors.size()) << spelling;
  }
}

TEST(WeightSpellings, NothingAtAllIsMissingByTheFirst) {
  const ArchSpec arch = build(tiny("GteModel"));
  try {
    match_weights(arch, *checkpoint_in_memory({}));
    FAIL() << "an empty checkpoint was taken";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("encoder.layer.0.attention.qkv_proj.weight"), std::string::npos)
        << error.what();
  }
}

TEST(TokenLabels, AreRowsOfTheHead) {
  const float head[] = {1, 2, 3, 4, 10, 20};
  const std::vector<CheckpointTensor> tensors = {{"lm_head.weight", DType::f32, {3, 2}, head}};
  ArchSpec arch;
  arch.vocab_size = 3;
  arch.hidden = 2;
  arch.pooler.head = {{.inputs = 2, .outputs = 2}};
  arch.pooler.label_token_ids = {2, 1};
  const auto rows = with_token_labels(checkpoint_in_memory(tensors), arch);
  const CheckpointTensor& labels = rows->tensors().back();
  EXPECT_EQ(labels.name, "score.weight");
  EXPECT_EQ(labels.shape, (std::vector<int64_t>{2, 2}));
  const auto* values = static_cast<const float*>(labels.data);
  EXPECT_EQ(std::vector<float>(values, values + 4), (std::vector<float>{10, 20, 3, 4}));
  arch.pooler.is_label_difference = true;
  const auto difference = with_token_labels(checkpoint_in_memory(tensors), arch);
  values = static_cast<const float*>(difference->tensors().back().data);
  EXPECT_EQ(std::vector<float>(values, values + 2), (std::vector<float>{-7, -16}));
  EXPECT_THROW(with_token_labels(checkpoint_in_memory({}), arch), InvalidArgument);
  arch.vocab_size = 4;
  EXPECT_THROW(with_token_labels(checkpoint_in_memory(tensors), arch), InvalidArgument);
}

}  // namespace
}  // namespace quire
