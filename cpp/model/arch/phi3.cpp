// Phi-3, 3.5 and Phi-4 (mini): Llama with fused projections, partial rotary embeddings and LongRoPE.
#include "model/arch_common.h"
#include "model/arch_registry.h"

namespace quire {
namespace {

// The first releases called LongRoPE "su" or "yarn", and the trained length has a default of its own.
Json with_phi3_rope(Json config) {
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!config.contains(key) || !config[key].is_object()) continue;
    for (const char* type : {"rope_type", "type"}) {
      if (config[key].value(type, Json()) == "yarn") config[key][type] = "longrope";
    }
  }
  if (!config.contains("original_max_position_embeddings")) config["original_max_position_embeddings"] = 4096;
  return config;
}

ArchSpec phi3(const Json& given) {
  refuse_other_keys(given, {"sliding_window"});
  const Json config = with_phi3_rope(given);
  ArchSpec arch = dense_decoder(config, {.norm_eps = 1e-5});
  const RopeScaling scaling = arch.layers.front().attn.rope.scaling;
  if (scaling != RopeScaling::none && scaling != RopeScaling::longrope) {
    throw NotSupported("Phi-3 supports the rope types default and longrope only");
  }
  const int32_t window = config_window_or_off(config, "sliding_window", 0);
  arch.each_layer([&](LayerSpec& layer) { layer.attn.window = window; });
  arch.weights = outer_names() +
                 WeightRules{.rules = {{"model.layers.{i}.input_layernorm.weight", Slot::attn_norm, {"hidden"}},
                                       {"model.layers.{i}.self_attn.qkv_proj.weight", Slot::qkv, {"qkv_dim", "hidden"}},
                                       {"model.layers.{i}.self_attn.o_proj.weight", Slot::o, {"hidden", "q_dim"}},
                                       {"model.layers.{i}.post_attention_layernorm.weight", Slot::ffn_norm, {"hidden"}},
                                       {"model.layers.{i}.mlp.gate_up_proj.weight", Slot::gate_up, {"2ffn", "hidden"}},
                                       {"model.layers.{i}.mlp.down_proj.weight", Slot::down, {"hidden", "ffn"}}}};
  return arch;
}

}  // namespace

void register_phi3(ArchRegistry& registry) { registry.add("Phi3ForCausalLM", phi3); }

}  // namespace quire
