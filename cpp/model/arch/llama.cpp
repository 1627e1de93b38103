// Llama 1 to 3 and the many models of the same shape.
#include "model/arch_common.h"
#include "model/arch_registry.h"

namespace quire {
namespace {

ArchSpec llama(const Json& config) {
  refuse_other_keys(config, {"attention_bias", "mlp_bias"});
  ArchSpec arch = dense_decoder(config);
  const bool attention_bias = json_get<bool>(config, "attention_bias", false);
  const bool mlp_bias = json_get<bool>(config, "mlp_bias", false);
  arch.each_layer([&](LayerSpec& layer) {
    layer.attn.qkv_bias = attention_bias;
    layer.attn.o_bias = attention_bias;
    std::get<DenseFfn>(layer.ffn).bias = mlp_bias;
  });
  arch.weights = llama_names(arch);
  return arch;
}

}  // namespace

void register_llama(ArchRegistry& registry) {
  registry.add("LlamaForCausalLM", llama);
  registry.add("LLaMAForCausalLM", llama);  // the spelling of the first conversions
}

}  // namespace quire
