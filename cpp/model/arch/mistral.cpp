// Mistral: Llama with a sliding window in every layer (null: without).
#include "model/arch_common.h"
#include "model/arch_registry.h"

namespace quire {
namespace {

ArchSpec mistral(const Json& config) {
  refuse_other_keys(config, {"sliding_window"});
  ArchSpec arch = dense_decoder(config, {.num_kv_heads = 8});
  const int32_t window = config_window_or_off(config, "sliding_window", 4096);
  arch.each_layer([&](LayerSpec& layer) { layer.attn.window = window; });
  arch.weights = llama_names(arch);
  return arch;
}

}  // namespace

void register_mistral(ArchRegistry& registry) { registry.add("MistralForCausalLM", mistral); }

}  // namespace quire
