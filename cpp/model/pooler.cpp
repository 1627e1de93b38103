// The device's part of pooling, and how a model comes to its pooler; see pooler.h.
#include "model/pooler.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "model/pooling_arch.h"

namespace quire {
namespace {

constexpr std::pair<const char*, PoolingType> kTypes[] = {{"LAST", PoolingType::last},
                                                          {"MEAN", PoolingType::mean},
                                                          {"CLS", PoolingType::cls},
                                                          {"ALL", PoolingType::all},
                                                          {"STEP", PoolingType::step}};

// A classifier that a checkpoint has and the task does not use.
void drop_head(ArchSpec& arch) {
  const auto is_head = [](const WeightRule& rule) { return rule.slot >= Slot::head_0; };
  for (const WeightRule& rule : arch.weights.rules) {
    if (is_head(rule)) arch.weights.ignored.push_back(rule.name);
  }
  std::erase_if(arch.weights.rules, is_head);
  arch.pooler.head.clear();
  arch.pooler.label_token_ids.clear();
}

bool is_decoder(const ArchSpec& arch) { return arch.layers.front().attn.causal; }

void embed_by(const SentenceTransformersConfig& files, ArchSpec& arch) {
  const bool is_late = arch.pooler.is_late_interaction || files.is_late_interaction;
  if (!arch.pooler.is_late_interaction && !arch.pooler.head.empty()) drop_head(arch);
  if (is_late) {
    arch.pooler.type = PoolingType::all;
  } else if (is_token_wise(arch.pooler.type)) {
    arch.pooler.type = PoolingType::last;
  }
  arch.pooler.activation = PoolingActivation::normalize;
  if (files.pooling.has_value()) {
    arch.pooler.type = *files.pooling;
    arch.pooler.modes = files.modes;
    arch.pooler.activation = files.normalizes ? PoolingActivation::normalize : PoolingActivation::none;
  }
  for (const SentenceTransformersConfig::Dense& dense : files.dense) {
    const int64_t inputs = pooled_columns(arch, true);
    if (dense.layer.inputs != inputs) {
      throw InvalidArgument(
          str_cat(dense.folder, " takes vectors of ", dense.layer.inputs, ", but gets vectors of ", inputs));
    }
    add_head_layer(dense.layer, dense.folder + "/linear", arch);
  }
}

void apply_task(const Json& config, const SentenceTransformersConfig& files, const std::string& task, ArchSpec& arch) {
  const auto refuse = [&] {
    throw InvalidArgument(
        str_cat("This model does not support the '", task, "' task: ", arch.name, " has no head for it"));
  };
  if (task == "embed") {
    embed_by(files, arch);
  } else if (task == "classify" || task == "score") {
    // Any decoder may have been saved with a classifier.
    if (arch.pooler.is_late_interaction || (arch.pooler.head.empty() && !is_decoder(arch))) refuse();
    if (arch.pooler.head.empty()) add_score_head(config, arch);
    arch.pooler.activation = task == "score" ? score_activation(config) : classifier_activation(config);
  } else if (task == "reward") {
    if (arch.pooler.is_late_interaction) refuse();
    if (!arch.pooler.head.empty()) return;  // as its architecture has it
    if (!is_decoder(arch)) refuse();
    arch.pooler.type = PoolingType::all;
    arch.pooler.activation = PoolingActivation::none;
  } else {
    throw InvalidArgument(str_cat("unknown pooling task \"", task, "\"; there are embed, classify, score and reward"));
  }
}

// A pooling type of the caller's may give other vectors than a dense module was made for.
void check_head_inputs(const ArchSpec& arch) {
  if (arch.pooler.head.empty()) return;
  const int64_t wanted = arch.pooler.head.front().inputs, given = state_columns(arch, arch.pooler.type);
  require(wanted == given, str_cat("pooling by ", pooling_name(arch.pooler), " gives vectors of ", given,
                                   ", but the layer behind it takes vectors of ", wanted));
}

}  // namespace

PoolingType parse_pooling_type(const std::string& name) {
  std::string upper = name;
  std::ranges::transform(upper, upper.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  for (const auto& [known, type] : kTypes) {
    if (upper == known) return type;
  }
  throw InvalidArgument(str_cat("unknown pooling_type '", name, "'; there are LAST, ALL, CLS, STEP and MEAN"));
}

std::string pooling_name(const PoolerSpec& pooler) {
  if (pooler.type == PoolingType::modes) return joined_names(pooler.modes);
  return std::ranges::find(kTypes, pooler.type, &std::pair<const char*, PoolingType>::second)->first;
}

std::vector<PoolingMode> modes_of(const PoolerSpec& pooler) {
  if (pooler.type == PoolingType::modes) return pooler.modes;
  if (pooler.type == PoolingType::cls) return {PoolingMode::cls};
  return {pooler.type == PoolingType::mean ? PoolingMode::mean : PoolingMode::lasttoken};
}

const char* pooling_activation_name(PoolingActivation activation) {
  switch (activation) {
    case PoolingActivation::normalize:
      return "normalize";
    case PoolingActivation::softmax:
      return "softmax";
    case PoolingActivation::sigmoid:
      return "sigmoid";
    case PoolingActivation::none:
      break;
  }
  return "none";
}

void resolve_pooler(const Json& config, const SentenceTransformersConfig& files, const PoolerOptions& options,
                    ArchSpec& arch) {
  apply_task(config, files, options.task, arch);
  PoolerSpec& pooler = arch.pooler;
  if (!options.pooling_type.empty()) pooler.type = parse_pooling_type(options.pooling_type);
  if (options.normalize.has_value()) {
    const bool is_normalized = pooler.activation == PoolingActivation::normalize;
    if (*options.normalize) pooler.activation = PoolingActivation::normalize;
    if (!*options.normalize && is_normalized) pooler.activation = PoolingActivation::none;
  }
  if (options.softmax.has_value()) {
    const bool has_probabilities =
        pooler.activation == PoolingActivation::softmax || pooler.activation == PoolingActivation::sigmoid;
    if (*options.softmax && !has_probabilities) pooler.activation = PoolingActivation::softmax;
    if (!*options.softmax && has_probabilities) pooler.activation = PoolingActivation::none;
  }
  if (options.step_tag_id.has_value()) pooler.step_tag_id = options.step_tag_id;
  pooler.returned_token_ids = options.returned_token_ids;
  check_head_inputs(arch);
  const int64_t columns = pooled_columns(arch, true);
  for (const int32_t column : pooler.returned_token_ids) {
    if (column >= 0 && column < columns) continue;
    throw InvalidArgument(
        str_cat("returned_token_ids names column ", column, ", but the model's answers have ", columns, " columns"));
  }
}

Tensor Pooler::pool(const Tensor& hidden, const DeviceBatch& batch, PoolingType type, const int32_t* rows,
                    const Ops& ops) const {
  if (type == PoolingType::last || type == PoolingType::cls) {
    return decoder_.final_hidden(hidden, rows, batch.num_seqs, ops);
  }
  // What is fetched lies without gaps.
  const bool is_as_wanted = type == PoolingType::mean || hidden.row_stride() == hidden.size(1);
  const Tensor states = is_as_wanted && !arch_.final_norm.has_value()
                            ? hidden
                            : decoder_.final_hidden(hidden, nullptr, batch.num_tokens, ops);
  if (type != PoolingType::mean) return states;
  const Tensor means = ops.scratch(DType::f32, batch.num_seqs, arch_.hidden);
  ops.mean_rows(states, batch.query_start, means);
  return means;
}

Tensor Pooler::head(Tensor pooled, const Ops& ops) const {
  for (size_t i = 0; i < arch_.pooler.head.size(); ++i) {
    const HeadLayer& layer = arch_.pooler.head[i];
    const Weights::HeadWeights& weights = weights_.pooling_head[i];
    const Tensor next = ops.scratch(DType::f32, pooled.size(0), layer.outputs);
    ops.gemm(pooled, weights.weight, {.bias = weights.bias, .activation = layer.activation}, next);
    if (layer.norm.has_value()) ops.norm(next, &*layer.norm, {weights.norm, weights.norm_bias}, nullptr, false, next);
    pooled = next;
  }
  return pooled;
}

}  // namespace quire
