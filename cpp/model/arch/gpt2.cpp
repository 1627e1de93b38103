// GPT-2: LayerNorm, learned positions, biases everywhere, and projections stored transposed (Conv1D).
#include <cmath>

#include "model/arch_common.h"
#include "model/arch_registry.h"

namespace quire {
namespace {

WeightRules gpt2_names() {
  return {.rules = {{"transformer.wte.weight", Slot::embedding, {"vocab", "hidden"}},
                    {"transformer.wpe.weight", Slot::position_embedding, {"positions", "hidden"}},
                    {"transformer.h.{i}.ln_1.weight", Slot::attn_norm, {"hidden"}},
                    {"transformer.h.{i}.ln_1.bias", Slot::attn_norm_bias, {"hidden"}},
                    {"transformer.h.{i}.attn.c_attn.weight", Slot::qkv, {"hidden", "qkv_dim"}, true},
                    {"transformer.h.{i}.attn.c_attn.bias", Slot::qkv_bias, {"qkv_dim"}},
                    {"transformer.h.{i}.attn.c_proj.weight", Slot::o, {"q_dim", "hidden"}, true},
                    {"transformer.h.{i}.attn.c_proj.bias", Slot::o_bias, {"hidden"}},
                    {"transformer.h.{i}.ln_2.weight", Slot::ffn_norm, {"hidden"}},
                    {"transformer.h.{i}.ln_2.bias", Slot::ffn_norm_bias, {"hidden"}},
                    {"transformer.h.{i}.mlp.c_fc.weight", Slot::up, {"hidden", "ffn"}, true},
                    {"transformer.h.{i}.mlp.c_fc.bias", Slot::up_bias, {"ffn"}},
                    {"transformer.h.{i}.mlp.c_proj.weight", Slot::down, {"ffn", "hidden"}, true},
                    {"transformer.h.{i}.mlp.c_proj.bias", Slot::down_bias, {"hidden"}},
                    {"transformer.ln_f.weight", Slot::final_norm, {"hidden"}},
                    {"transformer.ln_f.bias", Slot::final_norm_bias, {"hidden"}},
                    {"lm_head.weight", Slot::lm_head, {"vocab", "hidden"}}},
          .ignored = {"transformer.h.{i}.attn.bias", "transformer.h.{i}.attn.masked_bias"},  // causal masks
          .optional_prefix = "transformer."};
}

ArchSpec gpt2(const Json& config) {
  // reorder_and_upcast_attn only asks for float32 scores, which are the rule here.
  refuse_other_keys(config, {});
  ArchSpec arch;
  arch.hidden = config_size(config, {"n_embd", "hidden_size"});
  arch.embed_dim = arch.hidden;
  arch.vocab_size = config_size(config, {"vocab_size"});
  arch.tie_word_embeddings = json_get<bool>(config, "tie_word_embeddings", true);
  arch.learned_positions =
      LearnedPositions{.max_positions = config_size_or(config, {"n_positions", "max_position_embeddings"}, 1024)};

  LayerSpec layer;
  layer.norm = {.kind = NormKind::layer, .eps = json_get<float>(config, "layer_norm_epsilon", 1e-5f), .bias = true};
  const int64_t num_heads = config_size(config, {"n_head", "num_attention_heads"});
  if (arch.hidden % num_heads != 0) {
    throw InvalidArgument(str_cat("n_embd (", arch.hidden, ") must be a multiple of n_head (", num_heads, ")"));
  }
  AttnSpec& attn = layer.attn;
  attn.num_heads = attn.num_kv_heads = static_cast<int32_t>(num_heads);
  attn.head_dim = static_cast<int32_t>(arch.hidden / num_heads);
  attn.qkv_bias = attn.o_bias = true;
  layer.ffn = DenseFfn{.width = config_size_or(config, {"n_inner"}, 4 * arch.hidden),
                       .activation = parse_activation(config, "activation_function", "gelu_new"),
                       .gated = false,
                       .bias = true};
  const bool scaled = json_get<bool>(config, "scale_attn_weights", true);
  const bool by_layer = json_get<bool>(config, "scale_attn_by_inverse_layer_idx", false);
  const double scale = scaled ? 1.0 / std::sqrt(static_cast<double>(attn.head_dim)) : 1.0;
  const int64_t num_layers = config_size(config, {"n_layer", "num_hidden_layers"});
  for (int64_t i = 0; i < num_layers; ++i) {
    attn.scale = static_cast<float>(by_layer ? scale / static_cast<double>(i + 1) : scale);
    arch.layers.push_back(layer);
  }
  arch.final_norm = layer.norm;
  arch.weights = gpt2_names();
  return arch;
}

}  // namespace

void register_gpt2(ArchRegistry& registry) { registry.add("GPT2LMHeadModel", gpt2); }

}  // namespace quire
