// Reading of config.json: what each family makes of its keys, and the refusal of what would change the maths.
// That the specs compute what transformers computes is tested in tests/python/models.
#include "model/arch.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/check.h"
#include "model/arch_registry.h"
#include "model/plain_kernels.h"

namespace quire {
namespace {

using test::tiny_gpt2;
using test::tiny_llama;

Json with(Json config, const Json& changes) {
  if (!changes.is_null()) config.update(changes);
  return config;
}

Json tiny(const std::string& architecture, const Json& changes = Json::object()) {
  Json config = tiny_llama();
  config["architectures"] = {architecture};
  return with(config, changes);
}

ArchSpec build(const Json& config) { return arch_registry().build(config); }

template <typename Error>
std::string build_error(const Json& config) {
  try {
    build(config);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

void expect_part(const std::string& message, const std::string& part) {
  EXPECT_NE(message.find(part), std::string::npos) << "\"" << message << "\" lacks \"" << part << "\"";
}

std::vector<int32_t> windows(const ArchSpec& arch) {
  std::vector<int32_t> all;
  for (const LayerSpec& layer : arch.layers) all.push_back(layer.attn.window);
  return all;
}

TEST(ArchRegistry, KnowsTheFamilies) {
  EXPECT_EQ(arch_registry().supported(),
            (std::vector<std::string>{"GPT2LMHeadModel", "Gemma2ForCausalLM", "LLaMAForCausalLM", "LlamaForCausalLM",
                                      "MistralForCausalLM", "OPTForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM",
                                      "Qwen3ForCausalLM"}));
  EXPECT_EQ(build(tiny("LLaMAForCausalLM")).name, "LLaMAForCausalLM");
  EXPECT_EQ(build(with(tiny_llama(), {{"architectures", {"Unknown", "Qwen3ForCausalLM"}}})).name, "Qwen3ForCausalLM");
}

TEST(ArchRegistry, UnknownArchitecture) {
  const std::string message = build_error<InvalidArgument>(tiny("FalconForCausalLM"));
  expect_part(message,
              "Model architectures ['FalconForCausalLM'] are not supported for now. Supported architectures: [");
  expect_part(message, "'LlamaForCausalLM'");
  Json config = tiny_llama();
  config.erase("architectures");
  expect_part(build_error<InvalidArgument>(config), "Model architectures [] are not supported for now.");
  expect_part(build_error<InvalidArgument>(Json::array()), "must hold a JSON object");
}

TEST(Arch, Llama) {
  const ArchSpec arch = build(tiny_llama());
  EXPECT_EQ(arch.hidden, 6);
  EXPECT_EQ(arch.embed_dim, 6);
  EXPECT_EQ(arch.vocab_size, 11);
  EXPECT_FALSE(arch.tie_word_embeddings);
  ASSERT_EQ(arch.layers.size(), 2u);
  const AttnSpec& attn = arch.layers[1].attn;
  EXPECT_EQ(attn.num_heads, 3);
  EXPECT_EQ(attn.num_kv_heads, 1);
  EXPECT_EQ(attn.head_dim, 4);
  EXPECT_EQ(attn.rope.rotary_dim, 4);
  EXPECT_EQ(attn.scale, 0.5f);
  EXPECT_EQ(attn.window, 0);
  EXPECT_FALSE(attn.qkv_bias || attn.o_bias || attn.qk_norm.has_value());
  EXPECT_EQ(arch.layers[0].norm.eps, 1e-5f);
  EXPECT_EQ(arch.layers[0].norm.kind, NormKind::rms);
}

TEST(Arch, DefaultsOfMissingKeys) {
  Json config = tiny_llama();
  for (const char* key : {"rms_norm_eps", "num_key_value_heads", "head_dim", "hidden_act"}) config.erase(key);
  config["num_attention_heads"] = 3;
  const auto of = [&](const char* name) { return build(with(config, {{"architectures", {name}}})); };
  EXPECT_EQ(of("LlamaForCausalLM").layers[0].norm.eps, 1e-6f);
  EXPECT_EQ(of("LlamaForCausalLM").layers[0].attn.num_kv_heads, 3);
  EXPECT_EQ(of("LlamaForCausalLM").layers[0].attn.head_dim, 2);
  EXPECT_EQ(of("Phi3ForCausalLM").layers[0].norm.eps, 1e-5f);
  EXPECT_EQ(of("Qwen3ForCausalLM").layers[0].attn.head_dim, 128);
  config["num_attention_heads"] = 8;
  EXPECT_EQ(
      build(with(config, {{"architectures", {"MistralForCausalLM"}}, {"hidden_size", 16}})).layers[0].attn.num_kv_heads,
      8);
  const ArchSpec gemma2 = of("Gemma2ForCausalLM");
  EXPECT_EQ(gemma2.layers[0].attn.num_kv_heads, 4);
  EXPECT_EQ(gemma2.layers[0].attn.head_dim, 256);
  EXPECT_EQ(gemma2.layers[0].attn.softcap, 50.0f);
  EXPECT_EQ(gemma2.logits_softcap, 30.0f);
  EXPECT_EQ(gemma2.layers[0].attn.scale, 0.0625f);
  EXPECT_TRUE(gemma2.tie_word_embeddings);
  EXPECT_EQ(std::get<DenseFfn>(gemma2.layers[0].ffn).activation, Activation::gelu_tanh);
  EXPECT_EQ(windows(gemma2), (std::vector<int32_t>{4096, 0}));
}

TEST(Arch, SlidingWindows) {
  EXPECT_EQ(windows(build(tiny("MistralForCausalLM"))), (std::vector<int32_t>{4096, 4096}));
  EXPECT_EQ(windows(build(tiny("MistralForCausalLM", {{"sliding_window", nullptr}}))), (std::vector<int32_t>{0, 0}));
  EXPECT_EQ(windows(build(tiny("Phi3ForCausalLM"))), (std::vector<int32_t>{0, 0}));
  const Json off = {{"sliding_window", 7}, {"max_window_layers", 1}};
  const Json on = with(off, {{"use_sliding_window", true}});
  for (const char* qwen : {"Qwen2ForCausalLM", "Qwen3ForCausalLM"}) {
    EXPECT_EQ(windows(build(tiny(qwen, off))), (std::vector<int32_t>{0, 0}));
    EXPECT_EQ(windows(build(tiny(qwen, on))), (std::vector<int32_t>{0, 7}));
    const Json types = {{"layer_types", {"sliding_attention", "full_attention"}}};
    EXPECT_EQ(windows(build(tiny(qwen, with(on, types)))), (std::vector<int32_t>{7, 0}));
    expect_part(build_error<InvalidArgument>(tiny(qwen, with(off, types))), "gives layer 0 sliding attention, but");
  }
  expect_part(build_error<InvalidArgument>(tiny("Gemma2ForCausalLM", {{"sliding_window", nullptr}})),
              "\"sliding_window\" is null");
  expect_part(build_error<InvalidArgument>(tiny("Gemma2ForCausalLM", {{"layer_types", {"full_attention"}}})),
              "\"layer_types\" has 1 entries for 2 layers");
  expect_part(
      build_error<NotSupported>(tiny("Gemma2ForCausalLM", {{"layer_types", {"full_attention", "chunked_attention"}}})),
      "\"layer_types\" names \"chunked_attention\"");
}

TEST(Arch, RopePerLayerType) {
  const ArchSpec arch = build(tiny("Gemma2ForCausalLM", Json::parse(R"({"rope_parameters": {
      "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
      "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}},
      "layer_types": ["sliding_attention", "full_attention"]})")));
  EXPECT_EQ(arch.layers[0].attn.rope.theta, 5000.0);
  EXPECT_EQ(arch.layers[0].attn.rope.scaling, RopeScaling::none);
  EXPECT_EQ(arch.layers[1].attn.rope.theta, 1000000.0);
  EXPECT_EQ(arch.layers[1].attn.rope.factor, 8.0);
}

TEST(Arch, RopeErrors) {
  const auto message = [](const char* parameters) -> std::string {
    try {
      build(with(tiny_llama(), {{"rope_scaling", Json::parse(parameters)}}));
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  };
  expect_part(message(R"({"rope_type": "spiral"})"), "rope_type \"spiral\" is not supported");
  expect_part(message(R"({"type": "mrope", "mrope_section": [1, 1]})"), "rope parameter \"mrope_section\"");
  expect_part(message(R"({"type": "linear"})"), "\"factor\" must be a positive number, got nothing");
  expect_part(message(R"({"type": "linear", "factor": -2})"), "\"factor\" must be a positive number, got -2");
  expect_part(message(R"({"type": "linear", "factor": "two"})"), "of the wrong type");
  expect_part(message(R"({"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1})"),
              "\"high_freq_factor\" (1) must be greater");
  expect_part(message(R"({"type": "longrope", "short_factor": [1], "long_factor": [1, 2]})"),
              "\"short_factor\" must be 2 positive numbers");
  expect_part(message(R"({"type": "longrope", "short_factor": [1, 1]})"), "\"long_factor\" is missing");
  expect_part(message(R"({"partial_rotary_factor": 0.3})"), "a rotary dimension of 1");
  expect_part(message("3"), "\"rope_scaling\" is 3, not an object");
  EXPECT_EQ(message("null"), "");
}

TEST(Arch, Phi3CallsLongropeByOldNames) {
  for (const char* type : {"su", "yarn", "longrope"}) {
    const Json scaling = {{"type", type}, {"short_factor", {1.0, 1.5}}, {"long_factor", {2.0, 3.0}}};
    const Json changes = {{"rope_scaling", scaling}, {"max_position_embeddings", 16384}};
    const RopeSpec rope = build(tiny("Phi3ForCausalLM", changes)).layers[0].attn.rope;
    EXPECT_EQ(rope.scaling, RopeScaling::longrope);
    EXPECT_EQ(rope.original_max_positions, 4096);
    EXPECT_EQ(rope.factor, 4.0);
  }
  expect_part(
      build_error<NotSupported>(tiny("Phi3ForCausalLM", {{"rope_scaling", {{"type", "linear"}, {"factor", 2}}}})),
      "default and longrope only");
}

TEST(Arch, Gpt2) {
  const ArchSpec arch = build(with(tiny_gpt2(), {{"n_inner", nullptr}, {"scale_attn_by_inverse_layer_idx", true}}));
  EXPECT_EQ(std::get<DenseFfn>(arch.layers[0].ffn).width, 24);
  EXPECT_FALSE(std::get<DenseFfn>(arch.layers[0].ffn).gated);
  EXPECT_FLOAT_EQ(arch.layers[1].attn.scale, arch.layers[0].attn.scale / 2.0f);
  EXPECT_EQ(arch.layers[0].attn.rope.rotary_dim, 0);
  EXPECT_EQ(arch.max_positions, 9);
  EXPECT_EQ(arch.max_positions_key, "n_positions");
  EXPECT_TRUE(arch.tie_word_embeddings);
  expect_part(build_error<InvalidArgument>(with(tiny_gpt2(), {{"n_head", 4}})),
              "n_embd (6) must be a multiple of n_head (4)");
  expect_part(build_error<NotSupported>(with(tiny_gpt2(), {{"add_cross_attention", true}})), "\"add_cross_attention\"");
  expect_part(build_error<NotSupported>(with(tiny_gpt2(), {{"activation_function", "tanh"}})),
              "\"activation_function\" has the value \"tanh\"");
}

TEST(Arch, Opt) {
  const Json base = {{"architectures", {"OPTForCausalLM"}},
                     {"vocab_size", 11},
                     {"hidden_size", 6},
                     {"ffn_dim", 5},
                     {"num_hidden_layers", 2},
                     {"num_attention_heads", 2},
                     {"max_position_embeddings", 20},
                     {"word_embed_proj_dim", 4}};
  const ArchSpec pre = build(base);
  EXPECT_EQ(pre.embed_dim, 4);
  EXPECT_EQ(pre.learned_positions->offset, 2);
  EXPECT_EQ(pre.learned_positions->max_positions, 20);
  EXPECT_TRUE(pre.final_norm.has_value());
  const ArchSpec post = build(with(base, {{"do_layer_norm_before", false}, {"enable_bias", false}}));
  EXPECT_EQ(post.layers[0].place, NormPlace::post);
  EXPECT_FALSE(post.final_norm.has_value());
  EXPECT_FALSE(post.layers[0].attn.qkv_bias || std::get<DenseFfn>(post.layers[0].ffn).bias);
  EXPECT_FALSE(build(with(base, {{"_remove_final_layer_norm", true}})).final_norm.has_value());
  EXPECT_FALSE(build(with(base, {{"layer_norm_elementwise_affine", false}})).layers[0].norm.affine);
}

TEST(Arch, BadSizes) {
  const auto message = [](const Json& changes) { return build_error<InvalidArgument>(with(tiny_llama(), changes)); };
  expect_part(message({{"hidden_size", 0}}), "\"hidden_size\" must be an integer of at least 1, got 0");
  expect_part(message({{"hidden_size", 6.5}}), "got 6.5");
  expect_part(message({{"hidden_size", "6"}}), "got \"6\"");
  expect_part(message({{"hidden_size", true}}), "got true");
  expect_part(message({{"vocab_size", 5000000000}}), "got 5000000000");
  expect_part(message({{"num_hidden_layers", nullptr}}), "\"num_hidden_layers\" is missing");
  expect_part(message({{"num_key_value_heads", 2}}),
              "num_attention_heads (3) must be a multiple of num_key_value_heads (2)");
  expect_part(message({{"head_dim", nullptr}, {"num_attention_heads", 4}}), "hidden_size (6) must be a multiple");
  expect_part(message({{"tie_word_embeddings", 1}}), "of the wrong type");
}

TEST(Arch, KeysThatChangeTheMathsAreRefused) {
  const Json changes = {{"quantization_config", {{"quant_method", "awq"}}},
                        {"attn_logit_softcapping", 50.0},
                        {"residual_multiplier", 0.22},
                        {"num_local_experts", 8},
                        {"sliding_window", 4096},
                        {"layer_types", {"full_attention", "sliding_attention"}},
                        {"hidden_act", "quick_gelu"},
                        {"qk_layernorm", true},
                        {"is_encoder_decoder", true},
                        {"per_layer_config", {{"0", {{"num_attention_heads", 1}}}}}};
  for (const auto& [key, value] : changes.items()) {
    const std::string message = build_error<NotSupported>(with(tiny_llama(), {{key, value}}));
    expect_part(message, str_cat("\"", key, "\" has the value "));
  }
  expect_part(build_error<NotSupported>(tiny("MistralForCausalLM", {{"attention_bias", true}})), "\"attention_bias\"");
  expect_part(build_error<NotSupported>(tiny("Gemma2ForCausalLM", {{"use_bidirectional_attention", true}})),
              "\"use_bidirectional_attention\"");
  const Json neutral = {{"quantization_config", nullptr},
                        {"residual_multiplier", 1},
                        {"sliding_window", nullptr},
                        {"num_local_experts", 0},
                        {"qk_layernorm", false},
                        {"per_layer_config", Json::object()},
                        {"pretraining_tp", 2},
                        {"attention_dropout", 0.1},
                        {"made_up_key", 3},
                        {"layer_types", {"full_attention", "full_attention"}}};
  EXPECT_EQ(build_error<NotSupported>(with(tiny_llama(), neutral)), "");
}

}  // namespace
}  // namespace quire
