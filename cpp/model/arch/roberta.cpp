// RoBERTa, XLM-RoBERTa and CamemBERT: BERT whose positions begin behind the padding token's, with a classifier of its
// own on the first token.
//
// XLM-RoBERTa also as the "flash" code of Jina has it, which renamed and fused the weights, may have rotary positions
// instead of learned ones (jina-embeddings-v3), and may wrap weights in LoRA adapters, one for each of its tasks. The
// adapters are left out: what remains is the model without a task.
#include "base/log.h"
#include "model/arch_common.h"
#include "model/arch_registry.h"
#include "model/encoder_arch.h"

namespace quire {
namespace {

std::vector<WeightRule> flash_rules(const ArchSpec& arch) {
  const std::string layer = "encoder.layers.{i}.";
  std::vector<WeightRule> rules = bert_embedding_rules(arch, "emb_ln");
  append(linear_rules(layer + "mixer.Wqkv", Slot::qkv, {"qkv_dim", "hidden"}, Slot::qkv_bias), rules);
  append(linear_rules(layer + "mixer.out_proj", Slot::o, {"hidden", "q_dim"}, Slot::o_bias), rules);
  append(norm_rules(layer + "norm1", Slot::attn_norm, Slot::attn_norm_bias), rules);
  append(linear_rules(layer + "mlp.fc1", Slot::up, {"ffn", "hidden"}, Slot::up_bias), rules);
  append(linear_rules(layer + "mlp.fc2", Slot::down, {"hidden", "ffn"}, Slot::down_bias), rules);
  append(norm_rules(layer + "norm2", Slot::ffn_norm, Slot::ffn_norm_bias), rules);
  return rules;
}

// Every matrix that has adapters lies one level deeper.
std::vector<WeightRule> under_adapters(std::vector<WeightRule> rules) {
  for (WeightRule& rule : rules) {
    const std::string ending = ".weight";
    if (rule.shape.size() == 2 && rule.name.ends_with(ending)) {
      rule.name = rule.name.substr(0, rule.name.size() - ending.size()) + ".parametrizations.weight.original";
    }
  }
  return rules;
}

void ignore_adapters(WeightRules& weights) {
  const std::string layer = "encoder.layers.{i}.";
  for (const std::string& module :
       {std::string("embeddings.word_embeddings"), std::string("embeddings.token_type_embeddings"),
        std::string("pooler.dense"), layer + "mixer.Wqkv", layer + "mixer.out_proj", layer + "mlp.fc1",
        layer + "mlp.fc2"}) {
    for (const char* part : {"lora_A", "lora_B"}) {
      weights.ignored.push_back(module + ".parametrizations.weight.0." + part);
    }
  }
  weights.ignored.push_back("pooler.dense.parametrizations.weight.original");
}

// Adapters are chosen by the task of a call, which nothing here has: asking for one is refused.
void refuse_adapter_tasks(const Json& config) {
  for (const char* key : {"task_type", "default_task", "lora_task"}) {
    const auto found = config.find(key);
    if (found == config.end() || found->is_null()) continue;
    throw NotSupported(str_cat("config key \"", key, "\" asks for the LoRA adapter ", found->dump(),
                               ", but the adapters of XLM-RoBERTa are not supported: leave the key out for the model "
                               "without a task"));
  }
  if (const auto tasks = config.find("lora_adaptations"); tasks != config.end() && !tasks->empty()) {
    log_warning("the LoRA adapters of this model (", tasks->dump(),
                ") are not loaded: its vectors are those of the model without a task");
  }
}

void use_rotary_positions(const Json& config, ArchSpec& arch) {
  const Json rope = with_defaults(config, {{"rope_theta", json_get<double>(config, "rotary_emb_base", 20000.0)}});
  arch.each_layer([&](LayerSpec& layer) { layer.attn.rope = parse_rope(rope, layer.attn.head_dim); });
}

ArchSpec roberta_base(const Json& config, bool is_rotary) {
  refuse_other_keys(config, {});
  refuse_unless(config, "is_decoder", false);
  refuse_adapter_tasks(config);
  ArchSpec arch = post_norm_encoder(config);
  if (is_rotary) {
    use_rotary_positions(config, arch);
  } else {
    refuse_unless(config, "position_embedding_type", "absolute");
    add_positions_behind_padding(config, config_size_or(config, {"pad_token_id"}, 1, 0), arch);
  }
  arch.weights.dropped_prefixes = {"roberta."};
  ignore_encoder_heads(arch.weights);
  pool_first_token(arch);
  if (json_get<std::string>(config, "emb_pooler", "cls") == "mean") arch.pooler.type = PoolingType::mean;
  return arch;
}

ArchSpec roberta(const Json& config) {
  ArchSpec arch = roberta_base(config, false);
  arch.weights.rules = bert_embedding_rules(arch, "embeddings.LayerNorm");
  append(bert_layer_rules(), arch.weights.rules);
  return arch;
}

ArchSpec xlm_roberta_any(const Json& config, bool is_rotary) {
  ArchSpec arch = roberta_base(config, is_rotary);
  std::vector<WeightRule> own = bert_embedding_rules(arch, "embeddings.LayerNorm");
  append(is_rotary ? rotary_layer_rules(arch) : bert_layer_rules(), own);
  arch.weights.spellings = {own, flash_rules(arch), under_adapters(flash_rules(arch))};
  ignore_adapters(arch.weights);
  return arch;
}

ArchSpec xlm_roberta(const Json& config) {
  return xlm_roberta_any(config, json_get<std::string>(config, "position_embedding_type", "") == "rotary");
}

ArchSpec jina_v3(const Json& config) {
  return xlm_roberta_any(with_defaults(config, {{"type_vocab_size", 1}, {"layer_norm_eps", 1e-5}}), true);
}

}  // namespace

void register_roberta(ArchRegistry& registry) {
  const std::pair<const char*, ArchBuilder> families[] = {
      {"Roberta", roberta}, {"Camembert", roberta}, {"XLMRoberta", xlm_roberta}, {"JinaEmbeddingsV3", jina_v3}};
  for (const auto& [name, encoder] : families) {
    const std::string family = name;
    registry.add_pooling(family + "Model", encoder);
    registry.add_pooling(family + "ForMaskedLM", encoder);
    registry.add_pooling(family + "ForSequenceClassification",
                         with_tanh_classifier(encoder, "classifier.dense", "classifier.out_proj"));
    registry.add_pooling(family + "ForTokenClassification", with_token_classifier(encoder));
  }
}

}  // namespace quire
