// BERT: an encoder with norms after each half, learned positions and token types. Under its bare name, and with the
// classifier of cross-encoders, which stands behind a pooler: tanh(dense(first token)).
#include <cmath>

#include "model/arch_common.h"
#include "model/arch_registry.h"
#include "model/pooling_arch.h"

namespace quire {
namespace {

const std::string kLayer = "bert.encoder.layer.{i}.";

WeightRules linear_names(const std::string& name, Slot weight, const std::vector<std::string>& shape, Slot bias) {
  return {.rules = {{kLayer + name + ".weight", weight, shape}, {kLayer + name + ".bias", bias, {shape.front()}}}};
}

WeightRules bert_names() {
  const std::string embeddings = "bert.embeddings.";
  WeightRules names{
      .rules = {{embeddings + "word_embeddings.weight", Slot::embedding, {"vocab", "hidden"}},
                {embeddings + "position_embeddings.weight", Slot::position_embedding, {"positions", "hidden"}},
                {embeddings + "token_type_embeddings.weight", Slot::token_type_embedding, {"token_types", "hidden"}},
                {embeddings + "LayerNorm.weight", Slot::embedding_norm, {"hidden"}},
                {embeddings + "LayerNorm.bias", Slot::embedding_norm_bias, {"hidden"}}},
      .ignored = {embeddings + "position_ids", embeddings + "token_type_ids"},
      .optional_prefix = "bert."};
  names += linear_names("attention.self.query", Slot::q, {"q_dim", "hidden"}, Slot::q_bias);
  names += linear_names("attention.self.key", Slot::k, {"kv_dim", "hidden"}, Slot::k_bias);
  names += linear_names("attention.self.value", Slot::v, {"kv_dim", "hidden"}, Slot::v_bias);
  names += linear_names("attention.output.dense", Slot::o, {"hidden", "q_dim"}, Slot::o_bias);
  names += linear_names("attention.output.LayerNorm", Slot::attn_norm, {"hidden"}, Slot::attn_norm_bias);
  names += linear_names("intermediate.dense", Slot::up, {"ffn", "hidden"}, Slot::up_bias);
  names += linear_names("output.dense", Slot::down, {"hidden", "ffn"}, Slot::down_bias);
  names += linear_names("output.LayerNorm", Slot::ffn_norm, {"hidden"}, Slot::ffn_norm_bias);
  return names;
}

ArchSpec bert_encoder(const Json& config) {
  refuse_other_keys(config, {});
  refuse_unless(config, "position_embedding_type", "absolute");
  refuse_unless(config, "is_decoder", false);
  ArchSpec arch;
  arch.hidden = config_size(config, {"hidden_size"});
  arch.embed_dim = arch.hidden;
  arch.vocab_size = config_size(config, {"vocab_size"});
  arch.learned_positions = LearnedPositions{.max_positions = config_size_or(config, {"max_position_embeddings"}, 512)};
  arch.num_token_types = config_size_or(config, {"type_vocab_size"}, 2);

  LayerSpec layer;
  layer.place = NormPlace::post;
  layer.norm = {.kind = NormKind::layer, .eps = json_get<float>(config, "layer_norm_eps", 1e-12f), .bias = true};
  const int64_t num_heads = config_size(config, {"num_attention_heads"});
  if (arch.hidden % num_heads != 0) {
    throw InvalidArgument(
        str_cat("hidden_size (", arch.hidden, ") must be a multiple of num_attention_heads (", num_heads, ")"));
  }
  AttnSpec& attn = layer.attn;
  attn.num_heads = attn.num_kv_heads = static_cast<int32_t>(num_heads);
  attn.head_dim = static_cast<int32_t>(arch.hidden / num_heads);
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
  arch.weights = bert_names();
  return arch;
}

ArchSpec bert(const Json& config) {
  ArchSpec arch = bert_encoder(config);
  arch.pooler = {.type = PoolingType::cls, .activation = PoolingActivation::normalize};
  for (const char* name : {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "cls.seq_relationship.weight",
                           "cls.seq_relationship.bias", "cls.predictions.bias", "cls.predictions.decoder.weight",
                           "cls.predictions.decoder.bias", "cls.predictions.transform.dense.weight",
                           "cls.predictions.transform.dense.bias", "cls.predictions.transform.LayerNorm.weight",
                           "cls.predictions.transform.LayerNorm.bias"}) {
    arch.weights.ignored.emplace_back(name);
  }
  return arch;
}

ArchSpec bert_classifier(const Json& config) {
  ArchSpec arch = bert_encoder(config);
  arch.pooler = {.type = PoolingType::cls, .activation = classifier_activation(config)};
  add_head_layer({.inputs = arch.hidden, .outputs = arch.hidden, .activation = Activation::tanh}, "bert.pooler.dense",
                 arch);
  add_head_layer({.inputs = arch.hidden, .outputs = num_labels(config)}, "classifier", arch);
  return arch;
}

}  // namespace

void register_bert(ArchRegistry& registry) {
  registry.add_pooling("BertModel", bert);
  registry.add_pooling("BertForMaskedLM", bert);
  registry.add_pooling("BertForPreTraining", bert);
  registry.add_pooling("BertForSequenceClassification", bert_classifier);
}

}  // namespace quire
