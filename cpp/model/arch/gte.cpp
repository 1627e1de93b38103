// GTE ("NewModel" of Alibaba-NLP): BERT with rotary positions and a gated feed-forward whose only bias is that of the
// way down. Published under the names of its own code, and, by transformers itself, under others.
#include <cmath>

#include "model/arch_common.h"
#include "model/arch_registry.h"
#include "model/encoder_arch.h"

namespace quire {
namespace {

std::vector<WeightRule> original_rules(const ArchSpec& arch, bool is_packed) {
  const std::string layer = "encoder.layer.{i}.";
  std::vector<WeightRule> rules = bert_embedding_rules(arch, "embeddings.LayerNorm");
  if (is_packed) {
    append(linear_rules(layer + "attention.qkv_proj", Slot::qkv, {"qkv_dim", "hidden"}, Slot::qkv_bias), rules);
  } else {
    append(linear_rules(layer + "attention.q_proj", Slot::q, {"q_dim", "hidden"}, Slot::q_bias), rules);
    append(linear_rules(layer + "attention.k_proj", Slot::k, {"kv_dim", "hidden"}, Slot::k_bias), rules);
    append(linear_rules(layer + "attention.v_proj", Slot::v, {"kv_dim", "hidden"}, Slot::v_bias), rules);
  }
  append(linear_rules(layer + "attention.o_proj", Slot::o, {"hidden", "q_dim"}, Slot::o_bias), rules);
  append(norm_rules(layer + "attn_ln", Slot::attn_norm, Slot::attn_norm_bias), rules);
  rules.push_back({layer + "mlp.up_gate_proj.weight", Slot::up_gate, {"2ffn", "hidden"}});
  append(linear_rules(layer + "mlp.down_proj", Slot::down, {"hidden", "ffn"}, Slot::down_bias), rules);
  append(norm_rules(layer + "mlp_ln", Slot::ffn_norm, Slot::ffn_norm_bias), rules);
  return rules;
}

// "ntk" is the fixed kind: a base `factor` times as great, and all frequencies divided by factor^(2/d).
RopeSpec gte_rope(const Json& config, int32_t head_dim) {
  const auto scaling = config.find("rope_scaling");
  if (scaling == config.end() || !scaling->is_object() || json_get<std::string>(*scaling, "type", "") != "ntk") {
    return parse_rope(config, head_dim);
  }
  refuse_unless(*scaling, "mixed_b", nullptr);
  const auto factor = json_require<double>(*scaling, "factor");
  if (!(factor >= 1.0)) throw InvalidArgument(str_cat("rope parameter \"factor\" must be at least 1, got ", factor));
  Json plain = config;
  plain["rope_scaling"] = nullptr;
  RopeSpec rope = parse_rope(plain, head_dim);
  rope.theta *= factor;
  rope.scaling = RopeScaling::linear;
  rope.factor = std::pow(factor, 2.0 / rope.rotary_dim);
  return rope;
}

ArchSpec gte(const Json& config) {
  refuse_other_keys(config, {});
  refuse_unless(config, "position_embedding_type", "rope");
  refuse_unless(config, "layer_norm_type", "layer_norm");
  refuse_unless(config, "logn_attention_scale", false);
  const bool is_native = json_get<std::string>(config, "model_type", "") == "gte";
  const Json keys = with_defaults(config, {{"rope_theta", is_native ? 160000.0 : 10000.0}, {"type_vocab_size", 1}});
  ArchSpec arch = post_norm_encoder(keys);
  arch.each_layer([&](LayerSpec& layer) {
    layer.attn.rope = gte_rope(keys, layer.attn.head_dim);
    auto& ffn = std::get<DenseFfn>(layer.ffn);
    ffn.gated = true;
    ffn.bias = false;
    ffn.only_down_bias = true;
  });
  // What it was trained for; the table is not made longer by the rotation's factor.
  arch.max_positions = config_size_or(config, {"max_position_embeddings"}, 8192);
  arch.max_positions_key = "max_position_embeddings";
  std::vector<WeightRule> own = bert_embedding_rules(arch, "embeddings.LayerNorm");
  append(rotary_layer_rules(arch), own);
  arch.weights.spellings = {original_rules(arch, true), original_rules(arch, false), own};
  arch.weights.dropped_prefixes = {"new.", "gte."};
  ignore_encoder_heads(arch.weights);
  pool_first_token(arch);
  return arch;
}

}  // namespace

void register_gte(ArchRegistry& registry) {
  for (const std::string family : {"New", "Gte", "GteNew"}) {
    registry.add_pooling(family + "Model", gte);
    registry.add_pooling(family + "ForMaskedLM", gte);
    registry.add_pooling(family + "ForSequenceClassification", with_tanh_classifier(gte, "pooler.dense", "classifier"));
    registry.add_pooling(family + "ForTokenClassification", with_token_classifier(gte));
  }
}

}  // namespace quire
