// Heads of pooling models; see pooling_arch.h.
#include "model/pooling_arch.h"

#include <algorithm>

#include "base/check.h"
#include "model/arch_common.h"

namespace quire {
namespace {

// The head for text is not loaded; a checkpoint may hold it all the same.
void drop_lm_head(ArchSpec& arch) {
  if (arch.embed_dim != arch.hidden) {
    throw NotSupported(str_cat(arch.name, " with embeddings narrower than its hidden states cannot be pooled"));
  }
  WeightRules& weights = arch.weights;
  const auto is_head = [](const WeightRule& rule) {
    return rule.slot == Slot::lm_head || rule.slot == Slot::lm_head_bias;
  };
  for (const WeightRule& rule : weights.rules) {
    if (is_head(rule)) weights.ignored.push_back(rule.name);
  }
  std::erase_if(weights.rules, is_head);
  arch.has_lm_head = false;
  arch.lm_head_bias = false;
}

// Two layers with a ReLU between them, of every token: Qwen2's reward models. config.json names no labels, so the
// number is that of the architecture.
void add_reward_head(int64_t outputs, ArchSpec& arch) {
  add_head_layer({.inputs = arch.hidden, .outputs = arch.hidden, .activation = Activation::relu}, "score.0", arch);
  add_head_layer({.inputs = arch.hidden, .outputs = outputs}, "score.2", arch);
}

bool has_token_labels(const Json& config) {
  const auto tokens = config.find("classifier_from_token");
  return (tokens != config.end() && !tokens->is_null()) || json_get<bool>(config, "is_original_qwen3_reranker", false);
}

// vLLM's names for how rows of the head for text become a classifier.
bool takes_difference(const Json& config) {
  const bool is_qwen3 = json_get<bool>(config, "is_original_qwen3_reranker", false);
  const auto method = json_get<std::string>(config, "method", is_qwen3 ? "from_2_way_softmax" : "");
  if (method == "from_2_way_softmax") return true;
  if (method == "no_post_processing") return false;
  throw InvalidArgument(
      str_cat("config key \"classifier_from_token\" needs a \"method\", from_2_way_softmax or no_post_processing (or "
              "\"is_original_qwen3_reranker\": true, which means the first); got \"",
              method, "\""));
}

void add_token_labels(const Json& config, ArchSpec& arch) {
  arch.pooler.is_label_difference = takes_difference(config);
  arch.pooler.label_token_ids = json_get<std::vector<int32_t>>(config, "classifier_token_ids", {});
  const size_t num_tokens = arch.pooler.label_token_ids.size();
  if (num_tokens == 0) {
    throw InvalidArgument(
        "classifier_from_token needs the tokenizer of the model, which turns its tokens into ids; without one, the ids "
        "go under \"classifier_token_ids\"");
  }
  if (arch.pooler.is_label_difference && num_tokens != 2) {
    throw InvalidArgument(
        str_cat("from_2_way_softmax takes two tokens, that for no and that for yes; "
                "classifier_from_token has ",
                num_tokens));
  }
  for (const int32_t id : arch.pooler.label_token_ids) {
    if (id >= 0 && id < arch.vocab_size) continue;
    throw InvalidArgument(
        str_cat("classifier_token_ids has ", id, ", but the vocabulary has ", arch.vocab_size, " tokens"));
  }
}

PoolingActivation named_activation(const std::string& name) {
  const std::string prefix = "torch.nn.modules.";
  if (!name.starts_with(prefix)) {
    throw InvalidArgument(
        str_cat("Loading of activation functions is restricted to torch.nn.modules for security "
                "reasons; config.json names \"",
                name, "\""));
  }
  if (name.ends_with(".Sigmoid")) return PoolingActivation::sigmoid;
  if (name.ends_with(".Identity")) return PoolingActivation::none;
  if (name.ends_with(".Softmax")) return PoolingActivation::softmax;
  throw NotSupported(str_cat("the activation function ", name,
                             " of a cross-encoder is not supported; Sigmoid, Softmax and Identity are"));
}

}  // namespace

void add_head_layer(const HeadLayer& layer, const std::string& name, ArchSpec& arch, const std::string& norm_name) {
  const size_t index = arch.pooler.head.size();
  if (index == kMaxHeadLayers) {
    throw NotSupported(str_cat("more than ", kMaxHeadLayers, " layers after pooling (", name, ")"));
  }
  arch.pooler.head.push_back(layer);
  const std::string inputs = str_cat("head_in_", index), outputs = str_cat("head_out_", index);
  arch.weights.rules.push_back({name + ".weight", head_slot(index), {outputs, inputs}});
  if (layer.bias) arch.weights.rules.push_back({name + ".bias", head_bias_slot(index), {outputs}});
  if (!layer.norm.has_value()) return;
  arch.weights.rules.push_back({norm_name + ".weight", head_norm_slot(index), {outputs}});
  if (layer.norm->bias) arch.weights.rules.push_back({norm_name + ".bias", head_norm_bias_slot(index), {outputs}});
}

void add_score_head(const Json& config, ArchSpec& arch) {
  if (has_token_labels(config)) add_token_labels(config, arch);
  add_head_layer({.inputs = arch.hidden, .outputs = num_labels(config), .bias = false}, "score", arch);
  arch.pooler.type = PoolingType::last;
  arch.pooler.activation = classifier_activation(config);
}

int64_t num_labels(const Json& config) {
  if (has_token_labels(config)) {
    const auto ids = json_get<std::vector<int32_t>>(config, "classifier_token_ids", {});
    return takes_difference(config) ? 1 : std::max<int64_t>(1, static_cast<int64_t>(ids.size()));
  }
  const auto labels = config.find("id2label");
  if (labels != config.end() && labels->is_object() && !labels->empty()) return static_cast<int64_t>(labels->size());
  return config_size_or(config, {"num_labels"}, 2);
}

PoolingActivation classifier_activation(const Json& config) {
  const auto problem = json_get<std::string>(config, "problem_type", "");
  if (problem == "regression") return PoolingActivation::none;
  if (problem == "multi_label_classification") return PoolingActivation::sigmoid;
  return num_labels(config) == 1 ? PoolingActivation::sigmoid : PoolingActivation::softmax;
}

PoolingActivation score_activation(const Json& config) {
  std::string name = json_get<std::string>(config, "sbert_ce_default_activation_function", "");
  const auto section = config.find("sentence_transformers");
  if (section != config.end() && section->is_object()) name = json_get<std::string>(*section, "activation_fn", name);
  if (!name.empty()) return named_activation(name);
  return num_labels(config) == 1 ? PoolingActivation::sigmoid : PoolingActivation::none;
}

void make_pooling(const Json& config, ArchSpec& arch) {
  drop_lm_head(arch);
  arch.pooler = {.type = PoolingType::last, .activation = PoolingActivation::normalize};
  if (arch.name.ends_with("ForProcessRewardModel")) {
    add_reward_head(2, arch);
    arch.pooler.type = PoolingType::step;
    arch.pooler.activation = PoolingActivation::softmax;
    // Qwen2.5-Math-PRM's <extra_0>, which ends a step.
    constexpr int32_t kQwenStepTag = 151651;
    if (arch.vocab_size > kQwenStepTag) arch.pooler.step_tag_id = kQwenStepTag;
  } else if (arch.name.ends_with("ForRewardModel")) {
    add_reward_head(1, arch);
    arch.pooler.type = PoolingType::all;
    arch.pooler.activation = PoolingActivation::none;
  } else if (arch.name.ends_with("ForSequenceClassification")) {
    add_score_head(config, arch);
  } else if (arch.name.ends_with("ForTokenClassification")) {
    add_head_layer({.inputs = arch.hidden, .outputs = num_labels(config)}, "score", arch);
    arch.pooler.type = PoolingType::all;
    arch.pooler.activation = classifier_activation(config);
  }
}

}  // namespace quire
