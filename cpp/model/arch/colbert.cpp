// ColBERT: an encoder whose every token is projected and normalized; texts are compared token by token (MaxSim, which
// is done where pairs are scored). Under its own name on BERT, and under vLLM's names on other encoders.
#include "model/arch_common.h"
#include "model/arch_registry.h"
#include "model/pooling_arch.h"

namespace quire {
namespace {

// The width is nowhere in the first ColBERT's config.json, and 128.
int64_t token_width(const Json& config) {
  return config_size_or(config, {"colbert_dim", "dim", "projection_dim"}, 128);
}

ArchBuilder late_interaction(const std::string& encoder) {
  return [encoder](const Json& config) {
    Json plain = config;
    plain["architectures"] = {encoder};
    ArchSpec arch = arch_registry().build_pooling(plain);
    arch.pooler = {.type = PoolingType::all, .activation = PoolingActivation::normalize, .is_late_interaction = true};
    add_head_layer({.inputs = arch.hidden, .outputs = token_width(config), .bias = false}, "linear", arch);
    return arch;
  };
}

}  // namespace

void register_colbert(ArchRegistry& registry) {
  registry.add_pooling("HF_ColBERT", late_interaction("BertModel"));
  registry.add_pooling("ColBERTModernBertModel", late_interaction("ModernBertModel"));
  registry.add_pooling("ColBERTJinaRobertaModel", late_interaction("XLMRobertaModel"));
}

}  // namespace quire
