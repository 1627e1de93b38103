// The encoders of T5 and mT5 (sentence-t5, gtr): RMSNorm before each half, no bias but the one by distance, which all
// layers share, and scores that nothing scales. The first T5 has a ReLU, 1.1 and mT5 a gated GELU.
#include "model/arch_common.h"
#include "model/arch_registry.h"
#include "model/encoder_arch.h"
#include "model/relative_bias.h"

namespace quire {
namespace {

// "relu", "gated-gelu": the latter means the approximation by tanh.
DenseFfn t5_ffn(const Json& config) {
  const auto kind = json_get<std::string>(config, "feed_forward_proj", "relu");
  const std::string gated = "gated-";
  DenseFfn ffn{.width = config_size_or(config, {"d_ff"}, 2048), .gated = kind.starts_with(gated)};
  Json keys = config;
  keys["feed_forward_proj"] = kind == "gated-gelu" ? "gelu_new" : ffn.gated ? kind.substr(gated.size()) : kind;
  ffn.activation = parse_activation(keys, "feed_forward_proj", "relu");
  return ffn;
}

std::vector<WeightRule> t5_rules(const ArchSpec& arch, const std::string& embedding) {
  const std::string block = "encoder.block.{i}.layer.", attn = block + "0.SelfAttention.";
  const std::string ffn = block + "1.DenseReluDense.";
  std::vector<WeightRule> rules = {
      {embedding, Slot::embedding, {"vocab", "hidden"}},
      {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
       Slot::relative_bias,
       {"relative_buckets", "num_heads"}},
      {attn + "q.weight", Slot::q, {"q_dim", "hidden"}},
      {attn + "k.weight", Slot::k, {"kv_dim", "hidden"}},
      {attn + "v.weight", Slot::v, {"kv_dim", "hidden"}},
      {attn + "o.weight", Slot::o, {"hidden", "q_dim"}},
      {block + "0.layer_norm.weight", Slot::attn_norm, {"hidden"}},
      {ffn + "wo.weight", Slot::down, {"hidden", "ffn"}},
      {block + "1.layer_norm.weight", Slot::ffn_norm, {"hidden"}},
      {"encoder.final_layer_norm.weight", Slot::final_norm, {"hidden"}},
  };
  if (std::get<DenseFfn>(arch.layers.front().ffn).gated) {
    rules.push_back({ffn + "wi_0.weight", Slot::gate, {"ffn", "hidden"}});
    rules.push_back({ffn + "wi_1.weight", Slot::up, {"ffn", "hidden"}});
  } else {
    rules.push_back({ffn + "wi.weight", Slot::up, {"ffn", "hidden"}});
  }
  return rules;
}

LayerSpec t5_layer(const Json& config) {
  LayerSpec layer;
  layer.norm = {.kind = NormKind::rms, .eps = json_get<float>(config, "layer_norm_epsilon", 1e-6f)};
  AttnSpec& attn = layer.attn;
  attn.num_heads = static_cast<int32_t>(config_size_or(config, {"num_heads"}, 8));
  attn.num_kv_heads = attn.num_heads;
  attn.head_dim = static_cast<int32_t>(config_size_or(config, {"d_kv"}, 64));
  attn.scale = 1.0f;
  attn.causal = false;
  layer.ffn = t5_ffn(config);
  return layer;
}

ArchSpec t5_encoder(const Json& config) {
  refuse_other_keys(config, {"is_encoder_decoder"});
  refuse_unless(config, "is_decoder", false);
  ArchSpec arch;
  arch.hidden = arch.embed_dim = config_size(config, {"d_model"});
  arch.vocab_size = config_size(config, {"vocab_size"});
  arch.layers.assign(static_cast<size_t>(config_size_or(config, {"num_layers"}, 6)), t5_layer(config));
  arch.final_norm = arch.layers.front().norm;
  arch.has_lm_head = false;
  arch.relative_bias = RelativeBias{
      .num_buckets = config_size_or(config, {"relative_attention_num_buckets"}, 32),
      .max_distance = static_cast<int32_t>(config_size_or(config, {"relative_attention_max_distance"}, 128))};
  check_relative_bias(*arch.relative_bias);
  // One table under two names, of which a file has the first, the second or both.
  const std::string names[] = {"shared.weight", "encoder.embed_tokens.weight"};
  for (const std::string& name : names) {
    arch.weights.spellings.push_back(t5_rules(arch, name));
    arch.weights.ignored.push_back(name);
  }
  arch.pooler = {.type = PoolingType::mean, .activation = PoolingActivation::normalize};
  return arch;
}

ArchSpec mt5_encoder(const Json& config) {
  return t5_encoder(with_defaults(
      config, {{"feed_forward_proj", "gated-gelu"}, {"d_ff", 1024}, {"num_heads", 6}, {"num_layers", 8}}));
}

}  // namespace

void register_t5_encoder(ArchRegistry& registry) {
  registry.add_pooling("T5EncoderModel", t5_encoder);
  registry.add_pooling("MT5EncoderModel", mt5_encoder);
}

}  // namespace quire
