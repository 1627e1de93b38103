// Qwen 3: RMSNorm over each head of q and k, no biases unless attention_bias, windows as in Qwen 2.
#include "model/arch_common.h"
#include "model/arch_registry.h"

namespace quire {
namespace {

ArchSpec qwen3(const Json& config) {
  refuse_other_keys(config, {"attention_bias", "sliding_window", "use_sliding_window", "layer_types"});
  ArchSpec arch = dense_decoder(config, {.head_dim = 128});
  const bool attention_bias = json_get<bool>(config, "attention_bias", false);
  arch.each_layer([&](LayerSpec& layer) {
    layer.attn.qkv_bias = attention_bias;
    layer.attn.o_bias = attention_bias;
    layer.attn.qk_norm = layer.norm;
  });
  apply_qwen_windows(config, arch);
  arch.weights = llama_names(arch) +
                 WeightRules{.rules = {{"model.layers.{i}.self_attn.q_norm.weight", Slot::q_norm, {"head_dim"}},
                                       {"model.layers.{i}.self_attn.k_norm.weight", Slot::k_norm, {"head_dim"}}}};
  return arch;
}

}  // namespace

void register_qwen3(ArchRegistry& registry) { registry.add("Qwen3ForCausalLM", qwen3); }

}  // namespace quire
