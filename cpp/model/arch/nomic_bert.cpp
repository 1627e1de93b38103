// NomicBERT: BERT with rotary positions, a gated feed-forward and no biases but those of norms. Its config.json has the
// keys of GPT-2, or, written by transformers itself, those of BERT.
#include "model/arch_common.h"
#include "model/arch_registry.h"
#include "model/encoder_arch.h"

namespace quire {
namespace {

// Names of the code that came with the model: fc12 is the gate.
std::vector<WeightRule> original_rules(const ArchSpec& arch) {
  const std::string layer = "encoder.layers.{i}.";
  const bool has_bias = arch.layers.front().attn.qkv_bias;
  const auto& ffn = std::get<DenseFfn>(arch.layers.front().ffn);
  const auto bias = [](bool has, Slot slot, Slot weight) { return has ? slot : weight; };
  std::vector<WeightRule> rules = bert_embedding_rules(arch, "emb_ln");
  append(linear_rules(layer + "attn.Wqkv", Slot::qkv, {"qkv_dim", "hidden"}, bias(has_bias, Slot::qkv_bias, Slot::qkv)),
         rules);
  append(linear_rules(layer + "attn.out_proj", Slot::o, {"hidden", "q_dim"}, bias(has_bias, Slot::o_bias, Slot::o)),
         rules);
  append(norm_rules(layer + "norm1", Slot::attn_norm, Slot::attn_norm_bias), rules);
  append(linear_rules(layer + "mlp.fc11", Slot::up, {"ffn", "hidden"}, bias(ffn.bias, Slot::up_bias, Slot::up)), rules);
  append(linear_rules(layer + "mlp.fc12", Slot::gate, {"ffn", "hidden"}, bias(ffn.bias, Slot::gate_bias, Slot::gate)),
         rules);
  append(linear_rules(layer + "mlp.fc2", Slot::down, {"hidden", "ffn"},
                      bias(ffn.has_down_bias(), Slot::down_bias, Slot::down)),
         rules);
  append(norm_rules(layer + "norm2", Slot::ffn_norm, Slot::ffn_norm_bias), rules);
  return rules;
}

void refuse_variants(const Json& config) {
  refuse_unless(config, "prenorm", false);
  refuse_unless(config, "use_rms_norm", false);
  refuse_unless(config, "causal", false);
  refuse_unless(config, "parallel_block", false);
  refuse_unless(config, "scale_attn_weights", true);
  refuse_unless(config, "scale_attn_by_inverse_layer_idx", false);
  refuse_unless(config, "rotary_emb_interleaved", false);
  refuse_unless(config, "rotary_emb_scale_base", nullptr);
}

Activation gate_activation(const Json& config) {
  const auto name = json_get<std::string>(config, "activation_function", "swiglu");
  if (name == "swiglu") return Activation::silu;
  if (name == "geglu") return Activation::gelu;
  throw NotSupported(str_cat("config key \"activation_function\" has the value \"", name,
                             "\"; supported for NomicBERT: swiglu, geglu"));
}

Json original_keys(const Json& config) {
  Json keys = with_renamed_keys(config, {{"n_embd", "hidden_size"},
                                         {"n_head", "num_attention_heads"},
                                         {"n_layer", "num_hidden_layers"},
                                         {"n_inner", "intermediate_size"},
                                         {"layer_norm_epsilon", "layer_norm_eps"},
                                         {"rotary_emb_base", "rope_theta"},
                                         {"rotary_emb_fraction", "partial_rotary_factor"}});
  if (!keys.contains("intermediate_size")) keys["intermediate_size"] = 4 * config_size(config, {"n_embd"});
  keys["hidden_act"] = "silu";
  // The table has whole multiples of rows.
  const int64_t multiple = config_size_or(config, {"pad_vocab_size_multiple"}, 1);
  keys["vocab_size"] = (config_size(config, {"vocab_size"}) + multiple - 1) / multiple * multiple;
  return keys;
}

ArchSpec nomic_bert(const Json& config) {
  refuse_other_keys(config, {});
  refuse_variants(config);
  const bool is_original = config.contains("n_embd");
  const Json keys = with_defaults(is_original ? original_keys(config) : config,
                                  {{"rope_theta", is_original ? 10000.0 : 1000.0}, {"hidden_act", "silu"}});
  ArchSpec arch = post_norm_encoder(keys);
  const bool qkv_bias = json_get<bool>(config, "qkv_proj_bias", is_original);
  const bool up_bias = json_get<bool>(config, "mlp_fc1_bias", is_original);
  const bool down_bias = json_get<bool>(config, "mlp_fc2_bias", is_original);
  if (up_bias && !down_bias) {
    throw NotSupported("config keys \"mlp_fc1_bias\" true and \"mlp_fc2_bias\" false are not supported together");
  }
  arch.each_layer([&](LayerSpec& layer) {
    layer.attn.qkv_bias = layer.attn.o_bias = qkv_bias;
    layer.attn.rope = parse_rope(keys, layer.attn.head_dim);
    auto& ffn = std::get<DenseFfn>(layer.ffn);
    ffn.gated = true;
    ffn.bias = up_bias;
    ffn.only_down_bias = down_bias && !up_bias;
    if (is_original) ffn.activation = gate_activation(config);
  });
  if (is_original) {
    // Beyond the trained length the model's code stretches the rotation by the length of each text
    // (rotary_scaling_factor); up to it, it does not.
    arch.max_positions = config_size_or(config, {"max_trained_positions"}, 2048);
    arch.max_positions_key = "max_trained_positions";
  }
  std::vector<WeightRule> own = bert_embedding_rules(arch, "embeddings.LayerNorm");
  append(rotary_layer_rules(arch), own);
  arch.weights.spellings = {original_rules(arch), own};
  arch.weights.dropped_prefixes = {"bert.", "nomic_bert."};
  ignore_encoder_heads(arch.weights);
  pool_first_token(arch);
  return arch;
}

}  // namespace

void register_nomic_bert(ArchRegistry& registry) {
  registry.add_pooling("NomicBertModel", nomic_bert);
  registry.add_pooling("NomicBertForMaskedLM", nomic_bert);
  registry.add_pooling("NomicBertForPreTraining", nomic_bert);
  registry.add_pooling("NomicBertForSequenceClassification",
                       with_tanh_classifier(nomic_bert, "pooler.dense", "classifier"));
}

}  // namespace quire
