// Qwen 2 and 2.5: Llama with biases on q, k and v, and windows from some layer on when use_sliding_window says so.
#include "model/arch_common.h"
#include "model/arch_registry.h"

namespace quire {
namespace {

ArchSpec qwen2(const Json& config) {
  refuse_other_keys(config, {"sliding_window", "use_sliding_window", "layer_types"});
  ArchSpec arch = dense_decoder(config);
  arch.each_layer([](LayerSpec& layer) { layer.attn.qkv_bias = true; });
  apply_qwen_windows(config, arch);
  arch.weights = llama_names(arch);
  return arch;
}

}  // namespace

void register_qwen2(ArchRegistry& registry) { registry.add("Qwen2ForCausalLM", qwen2); }

}  // namespace quire
