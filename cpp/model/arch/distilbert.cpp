// DistilBERT: BERT without token types, under names of its own. Its classifier is relu(pre_classifier(first token)).
#include "model/arch_common.h"
#include "model/arch_registry.h"
#include "model/encoder_arch.h"
#include "model/pooling_arch.h"

namespace quire {
namespace {

std::vector<WeightRule> distilbert_layer_rules() {
  const std::string layer = "transformer.layer.{i}.";
  std::vector<WeightRule> rules;
  append(linear_rules(layer + "attention.q_lin", Slot::q, {"q_dim", "hidden"}, Slot::q_bias), rules);
  append(linear_rules(layer + "attention.k_lin", Slot::k, {"kv_dim", "hidden"}, Slot::k_bias), rules);
  append(linear_rules(layer + "attention.v_lin", Slot::v, {"kv_dim", "hidden"}, Slot::v_bias), rules);
  append(linear_rules(layer + "attention.out_lin", Slot::o, {"hidden", "q_dim"}, Slot::o_bias), rules);
  append(norm_rules(layer + "sa_layer_norm", Slot::attn_norm, Slot::attn_norm_bias), rules);
  append(linear_rules(layer + "ffn.lin1", Slot::up, {"ffn", "hidden"}, Slot::up_bias), rules);
  append(linear_rules(layer + "ffn.lin2", Slot::down, {"hidden", "ffn"}, Slot::down_bias), rules);
  append(norm_rules(layer + "output_layer_norm", Slot::ffn_norm, Slot::ffn_norm_bias), rules);
  return rules;
}

ArchSpec distilbert(const Json& config) {
  refuse_other_keys(config, {});
  Json keys = with_renamed_keys(config, {{"dim", "hidden_size"},
                                         {"n_heads", "num_attention_heads"},
                                         {"n_layers", "num_hidden_layers"},
                                         {"hidden_dim", "intermediate_size"},
                                         {"activation", "hidden_act"}});
  keys["type_vocab_size"] = 0;
  keys["layer_norm_eps"] = 1e-12;  // no key of its configuration
  ArchSpec arch = post_norm_encoder(keys);
  // sinusoidal_pos_embds only says how the table was made.
  arch.learned_positions = LearnedPositions{.max_positions = config_size_or(config, {"max_position_embeddings"}, 512)};
  arch.weights.rules = bert_embedding_rules(arch, "embeddings.LayerNorm");
  append(distilbert_layer_rules(), arch.weights.rules);
  arch.weights.dropped_prefixes = {"distilbert."};
  for (const char* name :
       {"embeddings.position_ids", "vocab_transform.weight", "vocab_transform.bias", "vocab_layer_norm.weight",
        "vocab_layer_norm.bias", "vocab_projector.weight", "vocab_projector.bias"}) {
    arch.weights.ignored.emplace_back(name);
  }
  pool_first_token(arch);
  return arch;
}

ArchSpec distilbert_classifier(const Json& config) {
  ArchSpec arch = distilbert(config);
  arch.pooler = {.type = PoolingType::cls, .activation = classifier_activation(config)};
  add_head_layer({.inputs = arch.hidden, .outputs = arch.hidden, .activation = Activation::relu}, "pre_classifier",
                 arch);
  add_head_layer({.inputs = arch.hidden, .outputs = num_labels(config)}, "classifier", arch);
  return arch;
}

}  // namespace

void register_distilbert(ArchRegistry& registry) {
  registry.add_pooling("DistilBertModel", distilbert);
  registry.add_pooling("DistilBertForMaskedLM", distilbert);
  registry.add_pooling("DistilBertForSequenceClassification", distilbert_classifier);
  registry.add_pooling("DistilBertForTokenClassification", with_token_classifier(distilbert));
}

}  // namespace quire
