// MPNet: BERT without token types, with RoBERTa's positions and T5's bias by distance, which all layers share. Its
// classifier stands on the first token, as RoBERTa's does.
#include "model/arch_common.h"
#include "model/arch_registry.h"
#include "model/encoder_arch.h"

namespace quire {
namespace {

std::vector<WeightRule> mpnet_layer_rules() {
  const std::string layer = "encoder.layer.{i}.", attn = layer + "attention.attn.";
  std::vector<WeightRule> rules;
  append(linear_rules(attn + "q", Slot::q, {"q_dim", "hidden"}, Slot::q_bias), rules);
  append(linear_rules(attn + "k", Slot::k, {"kv_dim", "hidden"}, Slot::k_bias), rules);
  append(linear_rules(attn + "v", Slot::v, {"kv_dim", "hidden"}, Slot::v_bias), rules);
  append(linear_rules(attn + "o", Slot::o, {"hidden", "q_dim"}, Slot::o_bias), rules);
  append(norm_rules(layer + "attention.LayerNorm", Slot::attn_norm, Slot::attn_norm_bias), rules);
  append(linear_rules(layer + "intermediate.dense", Slot::up, {"ffn", "hidden"}, Slot::up_bias), rules);
  append(linear_rules(layer + "output.dense", Slot::down, {"hidden", "ffn"}, Slot::down_bias), rules);
  append(norm_rules(layer + "output.LayerNorm", Slot::ffn_norm, Slot::ffn_norm_bias), rules);
  return rules;
}

ArchSpec mpnet(const Json& config) {
  refuse_other_keys(config, {});
  // The model's code knows 32 buckets up to a distance of 128, whatever config.json says.
  refuse_unless(config, "relative_attention_num_buckets", 32);
  Json keys = config;
  keys["type_vocab_size"] = 0;
  ArchSpec arch = post_norm_encoder(keys);
  constexpr int64_t kPaddingId = 1;  // pad_token_id does not move the positions
  add_positions_behind_padding(config, kPaddingId, arch);
  arch.relative_bias = RelativeBias{};
  arch.weights.rules = bert_embedding_rules(arch, "embeddings.LayerNorm");
  arch.weights.rules.push_back(
      {"encoder.relative_attention_bias.weight", Slot::relative_bias, {"relative_buckets", "num_heads"}});
  append(mpnet_layer_rules(), arch.weights.rules);
  arch.weights.dropped_prefixes = {"mpnet."};
  ignore_encoder_heads(arch.weights);
  pool_first_token(arch);
  return arch;
}

}  // namespace

void register_mpnet(ArchRegistry& registry) {
  registry.add_pooling("MPNetModel", mpnet);
  registry.add_pooling("MPNetForMaskedLM", mpnet);
  registry.add_pooling("MPNetForSequenceClassification",
                       with_tanh_classifier(mpnet, "classifier.dense", "classifier.out_proj"));
  registry.add_pooling("MPNetForTokenClassification", with_token_classifier(mpnet));
}

}  // namespace quire
