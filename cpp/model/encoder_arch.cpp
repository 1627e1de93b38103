// The encoder that most families are, and names; see encoder_arch.h.
#include "model/encoder_arch.h"

#include <cmath>

#include "base/check.h"
#include "model/arch_common.h"
#include "model/pooling_arch.h"

namespace quire {

Json with_renamed_keys(const Json& config, std::initializer_list<std::pair<const char*, const char*>> names) {
  Json renamed = config;
  for (const auto& [from, to] : names) {
    if (const auto found = config.find(from); found != config.end() && !found->is_null()) renamed[to] = *found;
  }
  return renamed;
}

Json with_defaults(const Json& config, std::initializer_list<std::pair<const char*, Json>> values) {
  Json filled = config;
  for (const auto& [key, value] : values) {
    if (!filled.contains(key)) filled[key] = value;
  }
  return filled;
}

ArchSpec post_norm_encoder(const Json& config) {
  ArchSpec arch;
  arch.hidden = config_size(config, {"hidden_size"});
  arch.embed_dim = arch.hidden;
  arch.vocab_size = config_size(config, {"vocab_size"});
  arch.num_token_types = config_size_or(config, {"type_vocab_size"}, 2, 0);

  LayerSpec layer;
  layer.place = NormPlace::post;
  layer.norm = {.kind = NormKind::layer, .eps = json_get<float>(config, "layer_norm_eps", 1e-12f), .bias = true};
  const int64_t num_heads = config_size(config, {"num_attention_heads"});
  const int64_t head_dim = config_size_or(config, {"head_dim"}, 0);
  if (head_dim == 0 && arch.hidden % num_heads != 0) {
    throw InvalidArgument(
        str_cat("hidden_size (", arch.hidden, ") must be a multiple of num_attention_heads (", num_heads, ")"));
  }
  AttnSpec& attn = layer.attn;
  attn.num_heads = attn.num_kv_heads = static_cast<int32_t>(num_heads);
  attn.head_dim = static_cast<int32_t>(head_dim == 0 ? arch.hidden / num_heads : head_dim);
  attn.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(attn.head_dim)));
  attn.qkv_bias = attn.o_bias = true;
  attn.causal = false;
  layer.ffn = DenseFfn{.width = config_size(config, {"intermediate_size"}),
                       .activation = parse_activation(config, "hidden_act", "gelu"),
                       .gated = false,
                       .bias = true};
  arch.embedding_norm = layer.norm;
  arch.layers.assign(static_cast<size_t>(config_size(config, {"num_hidden_layers"})), layer);
  arch.has_lm_head = false;
  return arch;
}

void add_positions_behind_padding(const Json& config, int64_t padding_id, ArchSpec& arch) {
  const int64_t offset = padding_id + 1;
  const int64_t num_rows = config_size_or(config, {"max_position_embeddings"}, 512);
  require(num_rows > offset,
          str_cat("config key \"max_position_embeddings\" (", num_rows,
                  ") leaves no position behind that of the padding token (pad_token_id ", padding_id, ")"));
  arch.learned_positions = {.max_positions = num_rows - offset,
                            .offset = static_cast<int32_t>(offset),
                            .uncounted_token = static_cast<int32_t>(padding_id)};
  arch.max_positions = num_rows - offset;
  arch.max_positions_key = "max_position_embeddings";
}

std::vector<WeightRule> linear_rules(const std::string& module, Slot weight, const std::vector<std::string>& shape,
                                     Slot bias) {
  std::vector<WeightRule> rules = {{module + ".weight", weight, shape}};
  if (bias != weight) rules.push_back({module + ".bias", bias, {shape.front()}});
  return rules;
}

std::vector<WeightRule> norm_rules(const std::string& module, Slot weight, Slot bias) {
  return linear_rules(module, weight, {"hidden"}, bias);
}

void append(std::vector<WeightRule> more, std::vector<WeightRule>& rules) {
  rules.insert(rules.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
}

std::vector<WeightRule> bert_embedding_rules(const ArchSpec& arch, const std::string& norm) {
  const std::string prefix = "embeddings.";
  std::vector<WeightRule> rules = {{prefix + "word_embeddings.weight", Slot::embedding, {"vocab", "hidden"}}};
  if (arch.learned_positions.has_value()) {
    rules.push_back({prefix + "position_embeddings.weight", Slot::position_embedding, {"positions", "hidden"}});
  }
  if (arch.num_token_types > 0) {
    rules.push_back({prefix + "token_type_embeddings.weight", Slot::token_type_embedding, {"token_types", "hidden"}});
  }
  append(norm_rules(norm, Slot::embedding_norm, Slot::embedding_norm_bias), rules);
  return rules;
}

std::vector<WeightRule> bert_layer_rules() {
  const std::string layer = "encoder.layer.{i}.";
  std::vector<WeightRule> rules;
  append(linear_rules(layer + "attention.self.query", Slot::q, {"q_dim", "hidden"}, Slot::q_bias), rules);
  append(linear_rules(layer + "attention.self.key", Slot::k, {"kv_dim", "hidden"}, Slot::k_bias), rules);
  append(linear_rules(layer + "attention.self.value", Slot::v, {"kv_dim", "hidden"}, Slot::v_bias), rules);
  append(linear_rules(layer + "attention.output.dense", Slot::o, {"hidden", "q_dim"}, Slot::o_bias), rules);
  append(norm_rules(layer + "attention.output.LayerNorm", Slot::attn_norm, Slot::attn_norm_bias), rules);
  append(linear_rules(layer + "intermediate.dense", Slot::up, {"ffn", "hidden"}, Slot::up_bias), rules);
  append(linear_rules(layer + "output.dense", Slot::down, {"hidden", "ffn"}, Slot::down_bias), rules);
  append(norm_rules(layer + "output.LayerNorm", Slot::ffn_norm, Slot::ffn_norm_bias), rules);
  return rules;
}

std::vector<WeightRule> rotary_layer_rules(const ArchSpec& arch) {
  const std::string layer = "layers.{i}.", attn = layer + "self_attn.", mlp = layer + "mlp.";
  const AttnSpec& spec = arch.layers.front().attn;
  const auto& ffn = std::get<DenseFfn>(arch.layers.front().ffn);
  const auto bias = [](bool has, Slot slot, Slot weight) { return has ? slot : weight; };
  std::vector<WeightRule> rules;
  append(linear_rules(attn + "q_proj", Slot::q, {"q_dim", "hidden"}, bias(spec.qkv_bias, Slot::q_bias, Slot::q)),
         rules);
  append(linear_rules(attn + "k_proj", Slot::k, {"kv_dim", "hidden"}, bias(spec.qkv_bias, Slot::k_bias, Slot::k)),
         rules);
  append(linear_rules(attn + "v_proj", Slot::v, {"kv_dim", "hidden"}, bias(spec.qkv_bias, Slot::v_bias, Slot::v)),
         rules);
  append(linear_rules(attn + "o_proj", Slot::o, {"hidden", "q_dim"}, bias(spec.o_bias, Slot::o_bias, Slot::o)), rules);
  const Slot up_bias = bias(ffn.bias, Slot::up_bias, Slot::up);
  const Slot down_bias = bias(ffn.has_down_bias(), Slot::down_bias, Slot::down);
  if (ffn.gated) {
    append(linear_rules(mlp + "gate_proj", Slot::gate, {"ffn", "hidden"}, bias(ffn.bias, Slot::gate_bias, Slot::gate)),
           rules);
    append(linear_rules(mlp + "up_proj", Slot::up, {"ffn", "hidden"}, up_bias), rules);
    append(linear_rules(mlp + "down_proj", Slot::down, {"hidden", "ffn"}, down_bias), rules);
  } else {
    append(linear_rules(mlp + "fc1", Slot::up, {"ffn", "hidden"}, up_bias), rules);
    append(linear_rules(mlp + "fc2", Slot::down, {"hidden", "ffn"}, down_bias), rules);
  }
  append(norm_rules(layer + "post_attention_layernorm", Slot::attn_norm, Slot::attn_norm_bias), rules);
  append(norm_rules(layer + "post_mlp_layernorm", Slot::ffn_norm, Slot::ffn_norm_bias), rules);
  return rules;
}

void ignore_encoder_heads(WeightRules& weights) {
  for (const char* name : {"embeddings.position_ids",
                           "embeddings.token_type_ids",
                           "pooler.dense.weight",
                           "pooler.dense.bias",
                           "cls.seq_relationship.weight",
                           "cls.seq_relationship.bias",
                           "cls.predictions.bias",
                           "cls.predictions.decoder.weight",
                           "cls.predictions.decoder.bias",
                           "cls.predictions.transform.dense.weight",
                           "cls.predictions.transform.dense.bias",
                           "cls.predictions.transform.LayerNorm.weight",
                           "cls.predictions.transform.LayerNorm.bias",
                           "cls.predictions.transform.layer_norm.weight",
                           "cls.predictions.transform.layer_norm.bias",
                           "lm_head.bias",
                           "lm_head.dense.weight",
                           "lm_head.dense.bias",
                           "lm_head.layer_norm.weight",
                           "lm_head.layer_norm.bias",
                           "lm_head.norm.weight",
                           "lm_head.norm.bias",
                           "lm_head.decoder.weight",
                           "lm_head.decoder.bias"}) {
    weights.ignored.emplace_back(name);
  }
}

void pool_first_token(ArchSpec& arch) {
  arch.pooler = {.type = PoolingType::cls, .activation = PoolingActivation::normalize};
}

ArchBuilder with_tanh_classifier(ArchBuilder encoder, const std::string& dense, const std::string& labels) {
  return [encoder = std::move(encoder), dense, labels](const Json& config) {
    ArchSpec arch = encoder(config);
    arch.pooler = {.type = PoolingType::cls, .activation = classifier_activation(config)};
    add_head_layer({.inputs = arch.hidden, .outputs = arch.hidden, .activation = Activation::tanh}, dense, arch);
    add_head_layer({.inputs = arch.hidden, .outputs = num_labels(config)}, labels, arch);
    return arch;
  };
}

ArchBuilder with_token_classifier(ArchBuilder encoder) {
  return [encoder = std::move(encoder)](const Json& config) {
    ArchSpec arch = encoder(config);
    arch.pooler = {.type = PoolingType::all, .activation = classifier_activation(config)};
    add_head_layer({.inputs = arch.hidden, .outputs = num_labels(config)}, "classifier", arch);
    return arch;
  };
}

}  // namespace quire
