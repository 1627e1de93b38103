// The decoder most families are, and its names; see arch_common.h.
#include "model/arch_common.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace quire {
namespace {

const Json* find_first(const Json& config, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    const auto found = config.find(key);
    if (found != config.end() && !found->is_null()) return &*found;
  }
  return nullptr;
}

int64_t checked_size(const Json& value, const char* key, int64_t minimum) {
  const bool integral = value.is_number_integer() ||
                        (value.is_number_float() && std::nearbyint(value.get<double>()) == value.get<double>());
  const double size = integral ? value.get<double>() : -1.0;
  if (!integral || size < static_cast<double>(minimum) || size > std::numeric_limits<int32_t>::max()) {
    throw InvalidArgument(
        str_cat("config key \"", key, "\" must be an integer of at least ", minimum, ", got ", value.dump()));
  }
  return static_cast<int64_t>(size);
}

// Keys by which configurations change the computation, and the value that changes nothing. From the configuration
// classes of the families that transformers and vLLM know; a family that means one of these says so to
// refuse_other_keys.
const std::vector<std::pair<const char*, Json>>& maths_keys() {
  static const std::vector<std::pair<const char*, Json>> keys = {
      {"quantization_config", nullptr},
      {"compression_config", nullptr},
      {"is_encoder_decoder", false},
      {"add_cross_attention", false},
      {"use_bidirectional_attention", false},
      {"per_layer_config", Json::object()},
      {"pruned_heads", Json::object()},
      {"block_configs", nullptr},
      // attention
      {"attention_bias", false},
      {"qkv_bias", false},
      {"bias", false},
      {"use_bias", false},
      {"use_qkv_bias", false},
      {"attention_out_bias", false},
      {"use_qk_norm", false},
      {"qk_layernorm", false},
      {"clip_qkv", nullptr},
      {"sliding_window", nullptr},
      {"use_sliding_window", false},
      {"layer_types", nullptr},
      {"attention_chunk_size", nullptr},
      {"attn_logit_softcapping", nullptr},
      {"query_pre_attn_scalar", nullptr},
      {"attention_multiplier", nullptr},
      {"no_rope_layers", nullptr},
      {"no_rope_layer_interval", nullptr},
      {"rope_interleaved", false},
      {"rotary_pct", 1.0},
      {"alibi", false},
      {"use_parallel_residual", false},
      {"parallel_attn", false},
      // feed-forward
      {"mlp_bias", false},
      {"num_experts", 0},
      {"num_local_experts", 0},
      {"n_routed_experts", 0},
      // multipliers
      {"embedding_multiplier", 1.0},
      {"residual_multiplier", 1.0},
      {"logits_scaling", 1.0},
      {"logit_scale", 1.0},
      {"scale_emb", 1.0},
      {"scale_depth", nullptr},
      {"dim_model_base", nullptr},
      {"final_logit_softcapping", nullptr},
  };
  return keys;
}

std::string short_dump(const Json& value) {
  std::string text = value.dump();
  if (text.size() > 200) text = text.substr(0, 200) + "...";
  return text;
}

}  // namespace

int64_t config_size(const Json& config, std::initializer_list<const char*> keys, int64_t minimum) {
  const char* const first = *keys.begin();
  const Json* value = find_first(config, keys);
  if (value == nullptr) {
    throw InvalidArgument(str_cat("config key \"", first, "\" is missing; is this the config.json of a model?"));
  }
  return checked_size(*value, first, minimum);
}

int64_t config_size_or(const Json& config, std::initializer_list<const char*> keys, int64_t missing, int64_t minimum) {
  const Json* value = find_first(config, keys);
  return value == nullptr ? missing : checked_size(*value, *keys.begin(), minimum);
}

double config_number_or_off(const Json& config, const char* key, double missing) {
  if (!config.contains(key)) return missing;
  const double value = json_get<double>(config, key, 0.0);
  if (value < 0.0) throw InvalidArgument(str_cat("config key \"", key, "\" must not be negative, got ", value));
  return value;
}

int32_t config_window_or_off(const Json& config, const char* key, int32_t missing) {
  return config.contains(key) ? static_cast<int32_t>(config_size_or(config, {key}, 0)) : missing;
}

Activation parse_activation(const Json& config, const char* key, const char* missing) {
  const auto name = json_get<std::string>(config, key, missing);
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "gelu" || name == "gelu_python") return Activation::gelu;
  // Four spellings of 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_fast" || name == "gelu_accurate") {
    return Activation::gelu_tanh;
  }
  if (name == "relu") return Activation::relu;
  if (name == "linear") return Activation::none;
  throw NotSupported(str_cat("config key \"", key, "\" has the value \"", name,
                             "\"; supported: silu, gelu, gelu_new, gelu_pytorch_tanh, relu, linear"));
}

void refuse_unless(const Json& config, const char* key, const Json& neutral) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null() || *found == neutral) return;
  throw NotSupported(str_cat(
      "config key \"", key, "\" has the value ", short_dump(*found),
      ", which quire does not support for this architecture",
      neutral.is_null() ? std::string(" (without the key it loads)") : str_cat(" (only ", neutral.dump(), " is)")));
}

void refuse_other_keys(const Json& config, std::initializer_list<std::string_view> handled) {
  for (const auto& [key, neutral] : maths_keys()) {
    if (std::ranges::find(handled, std::string_view(key)) != handled.end()) continue;
    // A list that says of every layer what is the rule anyway is as good as none.
    const auto found = config.find(key);
    if (std::string_view(key) == "layer_types" && found != config.end() && found->is_array() &&
        std::ranges::all_of(*found, [](const Json& type) { return type == "full_attention"; })) {
      continue;
    }
    refuse_unless(config, key, neutral);
  }
}

std::vector<std::string> parse_layer_types(const Json& config, size_t num_layers) {
  const auto types = json_get<std::vector<std::string>>(config, "layer_types", {});
  if (types.empty()) return types;
  if (types.size() != num_layers) {
    throw InvalidArgument(
        str_cat("config key \"layer_types\" has ", types.size(), " entries for ", num_layers, " layers"));
  }
  for (const std::string& type : types) {
    if (type != "full_attention" && type != "sliding_attention") {
      throw NotSupported(
          str_cat("config key \"layer_types\" names \"", type, "\"; supported: full_attention, sliding_attention"));
    }
  }
  return types;
}

ArchSpec dense_decoder(const Json& config, const DecoderDefaults& defaults) {
  ArchSpec arch;
  arch.hidden = config_size(config, {"hidden_size"});
  arch.embed_dim = arch.hidden;
  arch.vocab_size = config_size(config, {"vocab_size"});
  arch.tie_word_embeddings = json_get<bool>(config, "tie_word_embeddings", defaults.tie_word_embeddings);

  LayerSpec layer;
  layer.norm = {.kind = NormKind::rms,
                .eps = json_get<float>(config, "rms_norm_eps", static_cast<float>(defaults.norm_eps))};
  const int64_t num_heads = config_size(config, {"num_attention_heads"});
  const auto found_kv_heads = config.find("num_key_value_heads");
  const int64_t missing_kv_heads =
      found_kv_heads == config.end() && defaults.num_kv_heads != 0 ? defaults.num_kv_heads : num_heads;
  const int64_t num_kv_heads = config_size_or(config, {"num_key_value_heads"}, missing_kv_heads);
  if (num_heads % num_kv_heads != 0) {
    throw InvalidArgument(str_cat("num_attention_heads (", num_heads, ") must be a multiple of num_key_value_heads (",
                                  num_kv_heads, ")"));
  }
  int64_t head_dim = config_size_or(config, {"head_dim"}, defaults.head_dim);
  if (head_dim == 0) {
    if (arch.hidden % num_heads != 0) {
      throw InvalidArgument(str_cat("hidden_size (", arch.hidden, ") must be a multiple of num_attention_heads (",
                                    num_heads, ") when head_dim is not given"));
    }
    head_dim = arch.hidden / num_heads;
  }
  AttnSpec& attn = layer.attn;
  attn.num_heads = static_cast<int32_t>(num_heads);
  attn.num_kv_heads = static_cast<int32_t>(num_kv_heads);
  attn.head_dim = static_cast<int32_t>(head_dim);
  attn.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  layer.ffn = DenseFfn{.width = config_size(config, {"intermediate_size"}),
                       .activation = parse_activation(config, defaults.activation_key, defaults.activation)};

  const auto num_layers = static_cast<size_t>(config_size(config, {"num_hidden_layers"}));
  const std::vector<std::string> types = parse_layer_types(config, num_layers);
  for (size_t i = 0; i < num_layers; ++i) {
    attn.rope = parse_rope(config, attn.head_dim, types.empty() ? std::string_view("full_attention") : types[i]);
    arch.layers.push_back(layer);
  }
  arch.final_norm = layer.norm;
  return arch;
}

void apply_qwen_windows(const Json& config, ArchSpec& arch) {
  const bool enabled = json_get<bool>(config, "use_sliding_window", false);
  const int32_t window = enabled ? config_window_or_off(config, "sliding_window", 4096) : 0;
  const int64_t first = config_size_or(config, {"max_window_layers"}, 28, 0);
  const std::vector<std::string> types = parse_layer_types(config, arch.layers.size());
  for (size_t i = 0; i < arch.layers.size(); ++i) {
    const bool slides = types.empty() ? static_cast<int64_t>(i) >= first : types[i] == "sliding_attention";
    if (slides && !types.empty() && window == 0) {
      throw InvalidArgument(str_cat("config key \"layer_types\" gives layer ", i,
                                    " sliding attention, but use_sliding_window or sliding_window switches it off"));
    }
    arch.layers[i].attn.window = slides ? window : 0;
  }
}

WeightRules outer_names() {
  return {.rules = {{"model.embed_tokens.weight", Slot::embedding, {"vocab", "embed"}},
                    {"model.norm.weight", Slot::final_norm, {"hidden"}},
                    {"lm_head.weight", Slot::lm_head, {"vocab", "embed"}}},
          .ignored = {"model.layers.{i}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"},
          .optional_prefix = "model."};
}

WeightRules attention_names(const ArchSpec& arch) {
  const std::string prefix = "model.layers.{i}.self_attn.";
  WeightRules names{.rules = {{prefix + "q_proj.weight", Slot::q, {"q_dim", "hidden"}},
                              {prefix + "k_proj.weight", Slot::k, {"kv_dim", "hidden"}},
                              {prefix + "v_proj.weight", Slot::v, {"kv_dim", "hidden"}},
                              {prefix + "o_proj.weight", Slot::o, {"hidden", "q_dim"}}}};
  if (arch.layers.front().attn.qkv_bias) {
    names += {.rules = {{prefix + "q_proj.bias", Slot::q_bias, {"q_dim"}},
                        {prefix + "k_proj.bias", Slot::k_bias, {"kv_dim"}},
                        {prefix + "v_proj.bias", Slot::v_bias, {"kv_dim"}}}};
  }
  if (arch.layers.front().attn.o_bias) names += {.rules = {{prefix + "o_proj.bias", Slot::o_bias, {"hidden"}}}};
  return names;
}

WeightRules gated_ffn_names(const ArchSpec& arch) {
  const std::string prefix = "model.layers.{i}.mlp.";
  WeightRules names{.rules = {{prefix + "gate_proj.weight", Slot::gate, {"ffn", "hidden"}},
                              {prefix + "up_proj.weight", Slot::up, {"ffn", "hidden"}},
                              {prefix + "down_proj.weight", Slot::down, {"hidden", "ffn"}}}};
  if (std::get<DenseFfn>(arch.layers.front().ffn).bias) {
    names += {.rules = {{prefix + "gate_proj.bias", Slot::gate_bias, {"ffn"}},
                        {prefix + "up_proj.bias", Slot::up_bias, {"ffn"}},
                        {prefix + "down_proj.bias", Slot::down_bias, {"hidden"}}}};
  }
  return names;
}

WeightRules llama_names(const ArchSpec& arch) {
  return outer_names() + attention_names(arch) + gated_ffn_names(arch) +
         WeightRules{.rules = {{"model.layers.{i}.input_layernorm.weight", Slot::attn_norm, {"hidden"}},
                               {"model.layers.{i}.post_attention_layernorm.weight", Slot::ffn_norm, {"hidden"}}}};
}

}  // namespace quire
