// Gemma 2: norms before and after each half of a block, soft caps on scores and logits, windows in every other layer,
// norm weights stored minus one, embeddings scaled by sqrt(hidden_size) in the model's dtype.
#include <cmath>

#include "model/arch_common.h"
#include "model/arch_registry.h"

namespace quire {
namespace {

void apply_windows(const Json& config, ArchSpec& arch) {
  const int32_t window = config_window_or_off(config, "sliding_window", 4096);
  const std::vector<std::string> types = parse_layer_types(config, arch.layers.size());
  for (size_t i = 0; i < arch.layers.size(); ++i) {
    const bool slides = types.empty() ? i % 2 == 0 : types[i] == "sliding_attention";
    if (slides && window == 0) {
      throw InvalidArgument(str_cat("layer ", i, " has sliding attention, but config key \"sliding_window\" is null"));
    }
    arch.layers[i].attn.window = slides ? window : 0;
  }
}

ArchSpec gemma2(const Json& config) {
  refuse_other_keys(config, {"attention_bias", "sliding_window", "layer_types", "attn_logit_softcapping",
                             "final_logit_softcapping", "query_pre_attn_scalar"});
  ArchSpec arch = dense_decoder(config, {.tie_word_embeddings = true,
                                         .num_kv_heads = 4,
                                         .head_dim = 256,
                                         .activation_key = "hidden_activation",
                                         .activation = "gelu_pytorch_tanh"});
  const bool attention_bias = json_get<bool>(config, "attention_bias", false);
  const auto attn_softcap = static_cast<float>(config_number_or_off(config, "attn_logit_softcapping", 50.0));
  const double query_scalar = json_get<double>(config, "query_pre_attn_scalar", 256.0);
  if (!(query_scalar > 0.0))
    throw InvalidArgument(str_cat("query_pre_attn_scalar must be positive, got ", query_scalar));
  arch.each_layer([&](LayerSpec& layer) {
    layer.place = NormPlace::sandwich;
    layer.norm.plus_one = true;
    layer.attn.qkv_bias = attention_bias;
    layer.attn.o_bias = attention_bias;
    layer.attn.softcap = attn_softcap;
    layer.attn.scale = static_cast<float>(1.0 / std::sqrt(query_scalar));
  });
  apply_windows(config, arch);
  arch.final_norm = arch.layers.front().norm;
  arch.logits_softcap = static_cast<float>(config_number_or_off(config, "final_logit_softcapping", 30.0));
  arch.embedding_scale = static_cast<float>(std::sqrt(static_cast<double>(arch.hidden)));
  arch.embedding_scale_in_model_dtype = true;
  arch.weights =
      outer_names() + attention_names(arch) + gated_ffn_names(arch) +
      WeightRules{.rules = {{"model.layers.{i}.input_layernorm.weight", Slot::attn_norm, {"hidden"}},
                            {"model.layers.{i}.post_attention_layernorm.weight", Slot::attn_post_norm, {"hidden"}},
                            {"model.layers.{i}.pre_feedforward_layernorm.weight", Slot::ffn_norm, {"hidden"}},
                            {"model.layers.{i}.post_feedforward_layernorm.weight", Slot::ffn_post_norm, {"hidden"}}}};
  return arch;
}

}  // namespace

void register_gemma2(ArchRegistry& registry) { registry.add("Gemma2ForCausalLM", gemma2); }

}  // namespace quire
