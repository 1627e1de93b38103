// BERT: an encoder with norms after each half, learned positions and token types. Under its bare name, and with the
// classifier of cross-encoders, which stands behind a pooler: tanh(dense(first token)).
#include "model/arch_common.h"
#include "model/arch_registry.h"
#include "model/encoder_arch.h"

namespace quire {
namespace {

ArchSpec bert_encoder(const Json& config) {
  refuse_other_keys(config, {});
  refuse_unless(config, "position_embedding_type", "absolute");
  refuse_unless(config, "is_decoder", false);
  ArchSpec arch = post_norm_encoder(config);
  arch.learned_positions = LearnedPositions{.max_positions = config_size_or(config, {"max_position_embeddings"}, 512)};
  arch.weights.rules = bert_embedding_rules(arch, "embeddings.LayerNorm");
  append(bert_layer_rules(), arch.weights.rules);
  arch.weights.dropped_prefixes = {"bert."};
  ignore_encoder_heads(arch.weights);
  pool_first_token(arch);
  return arch;
}

}  // namespace

void register_bert(ArchRegistry& registry) {
  registry.add_pooling("BertModel", bert_encoder);
  registry.add_pooling("BertForMaskedLM", bert_encoder);
  registry.add_pooling("BertForPreTraining", bert_encoder);
  registry.add_pooling("BertForSequenceClassification",
                       with_tanh_classifier(bert_encoder, "pooler.dense", "classifier"));
  registry.add_pooling("BertForTokenClassification", with_token_classifier(bert_encoder));
}

}  // namespace quire
