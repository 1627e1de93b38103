// ModernBERT: an encoder with norms before each half, gated feed-forward and no biases; most layers see a window to
// both sides and rotate by another base than those that see all. The first layer has no norm before attention: that of
// the embeddings has just been there.
#include <cmath>

#include "model/arch_common.h"
#include "model/arch_registry.h"
#include "model/encoder_arch.h"
#include "model/pooling_arch.h"

namespace quire {
namespace {

std::vector<WeightRule> modernbert_rules(const ArchSpec& arch) {
  const std::string layer = "layers.{i}.";
  const auto bias = [](bool has, Slot slot, Slot weight) { return has ? slot : weight; };
  const LayerSpec& spec = arch.layers.front();
  const auto& ffn = std::get<DenseFfn>(spec.ffn);
  const auto norm = [&](Slot weight, Slot norm_bias) { return bias(spec.norm.bias, norm_bias, weight); };
  std::vector<WeightRule> rules = {{"embeddings.tok_embeddings.weight", Slot::embedding, {"vocab", "hidden"}}};
  append(norm_rules("embeddings.norm", Slot::embedding_norm, norm(Slot::embedding_norm, Slot::embedding_norm_bias)),
         rules);
  append(norm_rules(layer + "attn_norm", Slot::attn_norm, norm(Slot::attn_norm, Slot::attn_norm_bias)), rules);
  append(linear_rules(layer + "attn.Wqkv", Slot::qkv, {"qkv_dim", "hidden"},
                      bias(spec.attn.qkv_bias, Slot::qkv_bias, Slot::qkv)),
         rules);
  append(linear_rules(layer + "attn.Wo", Slot::o, {"hidden", "q_dim"}, bias(spec.attn.o_bias, Slot::o_bias, Slot::o)),
         rules);
  append(norm_rules(layer + "mlp_norm", Slot::ffn_norm, norm(Slot::ffn_norm, Slot::ffn_norm_bias)), rules);
  append(linear_rules(layer + "mlp.Wi", Slot::gate_up, {"2ffn", "hidden"},
                      bias(ffn.bias, Slot::gate_up_bias, Slot::gate_up)),
         rules);
  append(linear_rules(layer + "mlp.Wo", Slot::down, {"hidden", "ffn"}, bias(ffn.bias, Slot::down_bias, Slot::down)),
         rules);
  append(norm_rules("final_norm", Slot::final_norm, norm(Slot::final_norm, Slot::final_norm_bias)), rules);
  return rules;
}

// By layer_types, or every n-th layer sees all, from the first on.
bool sees_all(const Json& config, const std::vector<std::string>& types, size_t layer) {
  if (!types.empty()) return types[layer] == "full_attention";
  return layer % static_cast<size_t>(config_size_or(config, {"global_attn_every_n_layers"}, 3)) == 0;
}

void set_attention(const Json& config, ArchSpec& arch) {
  const std::vector<std::string> types = parse_layer_types(config, arch.layers.size());
  const int64_t reach = config_size_or(config, {"local_attention"}, 128) / 2;
  Json global = config, local = config;
  global["rope_theta"] = json_get<double>(config, "global_rope_theta", 160000.0);
  local["rope_theta"] = json_get<double>(config, "local_rope_theta", 10000.0);
  for (size_t i = 0; i < arch.layers.size(); ++i) {
    AttnSpec& attn = arch.layers[i].attn;
    const bool is_global = sees_all(config, types, i);
    // The key `reach` tokens away is seen too.
    attn.window = is_global ? 0 : static_cast<int32_t>(reach + 1);
    attn.rope =
        parse_rope(is_global ? global : local, attn.head_dim, is_global ? "full_attention" : "sliding_attention");
  }
}

ArchSpec modernbert(const Json& config) {
  refuse_other_keys(config, {"attention_bias", "mlp_bias", "layer_types"});
  Json keys = with_renamed_keys(config, {{"hidden_activation", "hidden_act"}});
  keys["type_vocab_size"] = 0;
  ArchSpec arch = post_norm_encoder(keys);
  const bool attention_bias = json_get<bool>(config, "attention_bias", false);
  const NormSpec norm = {.kind = NormKind::layer,
                         .eps = json_get<float>(config, "norm_eps", 1e-5f),
                         .bias = json_get<bool>(config, "norm_bias", false)};
  arch.each_layer([&](LayerSpec& layer) {
    layer.place = NormPlace::pre;
    layer.norm = norm;
    layer.attn.qkv_bias = layer.attn.o_bias = attention_bias;
    auto& ffn = std::get<DenseFfn>(layer.ffn);
    ffn.gated = true;
    ffn.bias = json_get<bool>(config, "mlp_bias", false);
  });
  arch.layers.front().attn_norm = false;
  arch.embedding_norm = arch.final_norm = norm;
  set_attention(config, arch);
  arch.weights.rules = modernbert_rules(arch);
  arch.weights.dropped_prefixes = {"model."};
  arch.weights.ignored = {"head.dense.weight", "head.dense.bias", "head.norm.weight",
                          "head.norm.bias",    "decoder.weight",  "decoder.bias"};
  pool_first_token(arch);
  return arch;
}

void add_head(const Json& config, ArchSpec& arch) {
  arch.pooler.activation = classifier_activation(config);
  add_head_layer({.inputs = arch.hidden,
                  .outputs = arch.hidden,
                  .bias = json_get<bool>(config, "classifier_bias", false),
                  .activation = parse_activation(config, "classifier_activation", "gelu"),
                  .norm = arch.final_norm},
                 "head.dense", arch, "head.norm");
  add_head_layer({.inputs = arch.hidden, .outputs = num_labels(config)}, "classifier", arch);
}

ArchSpec modernbert_classifier(const Json& config) {
  ArchSpec arch = modernbert(config);
  const auto pooling = json_get<std::string>(config, "classifier_pooling", "cls");
  if (pooling != "cls" && pooling != "mean") {
    throw NotSupported(
        str_cat("config key \"classifier_pooling\" has the value \"", pooling, "\"; supported: cls, mean"));
  }
  arch.pooler.type = pooling == "cls" ? PoolingType::cls : PoolingType::mean;
  add_head(config, arch);
  return arch;
}

ArchSpec modernbert_token_classifier(const Json& config) {
  ArchSpec arch = modernbert(config);
  arch.pooler.type = PoolingType::all;
  add_head(config, arch);
  return arch;
}

}  // namespace

void register_modernbert(ArchRegistry& registry) {
  registry.add_pooling("ModernBertModel", modernbert);
  registry.add_pooling("ModernBertForMaskedLM", modernbert);
  registry.add_pooling("ModernBertForSequenceClassification", modernbert_classifier);
  registry.add_pooling("ModernBertForTokenClassification", modernbert_token_classifier);
}

}  // namespace quire
