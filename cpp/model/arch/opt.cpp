// OPT: LayerNorm before or after each half, learned positions that start at row 2, ungated feed-forward, optionally a
// narrower embedding with projections (350m), no biases or norms without weights (Galactica).
#include <cmath>

#include "model/arch_common.h"
#include "model/arch_registry.h"

namespace quire {
namespace {

constexpr int32_t kPositionOffset = 2;

WeightRules linear_names(const std::string& prefix, Slot weight, std::vector<std::string> shape, Slot bias,
                         bool has_bias) {
  WeightRules names{.rules = {{prefix + ".bias", bias, {shape.front()}}}};
  if (!has_bias) names.rules.clear();
  names.rules.push_back({prefix + ".weight", weight, std::move(shape)});
  return names;
}

WeightRules norm_names(const std::string& prefix, Slot weight, Slot bias, const NormSpec& norm) {
  if (!norm.affine) return {};
  return {.rules = {{prefix + ".weight", weight, {"hidden"}}, {prefix + ".bias", bias, {"hidden"}}}};
}

WeightRules opt_names(const ArchSpec& arch) {
  const LayerSpec& layer = arch.layers.front();
  const bool bias = layer.attn.qkv_bias;
  const std::string root = "model.decoder.", block = root + "layers.{i}.";
  WeightRules names{.rules = {{root + "embed_tokens.weight", Slot::embedding, {"vocab", "embed"}},
                              {root + "embed_positions.weight", Slot::position_embedding, {"positions", "hidden"}},
                              {"lm_head.weight", Slot::lm_head, {"vocab", "embed"}}},
                    .optional_prefix = "model."};
  if (arch.embed_dim != arch.hidden) {
    names += {.rules = {{root + "project_in.weight", Slot::embed_proj, {"hidden", "embed"}},
                        {root + "project_out.weight", Slot::out_proj, {"embed", "hidden"}}}};
  }
  names += norm_names(block + "self_attn_layer_norm", Slot::attn_norm, Slot::attn_norm_bias, layer.norm);
  names += linear_names(block + "self_attn.q_proj", Slot::q, {"q_dim", "hidden"}, Slot::q_bias, bias);
  names += linear_names(block + "self_attn.k_proj", Slot::k, {"kv_dim", "hidden"}, Slot::k_bias, bias);
  names += linear_names(block + "self_attn.v_proj", Slot::v, {"kv_dim", "hidden"}, Slot::v_bias, bias);
  names += linear_names(block + "self_attn.out_proj", Slot::o, {"hidden", "q_dim"}, Slot::o_bias, bias);
  names += norm_names(block + "final_layer_norm", Slot::ffn_norm, Slot::ffn_norm_bias, layer.norm);
  names += linear_names(block + "fc1", Slot::up, {"ffn", "hidden"}, Slot::up_bias, bias);
  names += linear_names(block + "fc2", Slot::down, {"hidden", "ffn"}, Slot::down_bias, bias);
  if (arch.final_norm.has_value()) {
    names += norm_names(root + "final_layer_norm", Slot::final_norm, Slot::final_norm_bias, *arch.final_norm);
  }
  return names;
}

ArchSpec opt(const Json& config) {
  refuse_other_keys(config, {});
  ArchSpec arch;
  arch.hidden = config_size(config, {"hidden_size"});
  arch.embed_dim = config_size_or(config, {"word_embed_proj_dim"}, arch.hidden);
  arch.vocab_size = config_size(config, {"vocab_size"});
  arch.tie_word_embeddings = json_get<bool>(config, "tie_word_embeddings", true);
  arch.learned_positions = LearnedPositions{.max_positions = config_size_or(config, {"max_position_embeddings"}, 2048),
                                            .offset = kPositionOffset};

  const bool norm_first = json_get<bool>(config, "do_layer_norm_before", true);
  const bool bias = json_get<bool>(config, "enable_bias", true);
  const bool affine = json_get<bool>(config, "layer_norm_elementwise_affine", true);
  LayerSpec layer;
  layer.place = norm_first ? NormPlace::pre : NormPlace::post;
  layer.norm = {.kind = NormKind::layer, .eps = 1e-5f, .bias = affine, .affine = affine};
  const int64_t num_heads = config_size(config, {"num_attention_heads"});
  if (arch.hidden % num_heads != 0) {
    throw InvalidArgument(
        str_cat("hidden_size (", arch.hidden, ") must be a multiple of num_attention_heads (", num_heads, ")"));
  }
  layer.attn.num_heads = layer.attn.num_kv_heads = static_cast<int32_t>(num_heads);
  layer.attn.head_dim = static_cast<int32_t>(arch.hidden / num_heads);
  layer.attn.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(layer.attn.head_dim)));
  layer.attn.qkv_bias = layer.attn.o_bias = bias;
  layer.ffn = DenseFfn{.width = config_size(config, {"ffn_dim"}),
                       .activation = parse_activation(config, "activation_function", "relu"),
                       .gated = false,
                       .bias = bias};
  arch.layers.assign(static_cast<size_t>(config_size(config, {"num_hidden_layers"})), layer);
  if (norm_first && !json_get<bool>(config, "_remove_final_layer_norm", false)) arch.final_norm = layer.norm;
  arch.weights = opt_names(arch);
  return arch;
}

}  // namespace

void register_opt(ArchRegistry& registry) { registry.add("OPTForCausalLM", opt); }

}  // namespace quire
