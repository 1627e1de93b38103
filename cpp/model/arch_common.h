// What the families of arch/ share: reading of config.json, the decoder that most of them are, the names Llama gave.
//
// Decides: defaults of missing keys (as transformers' configuration classes have them), refusal of keys that would
// change the maths. Does not know: any family. A key is handled, harmless, or refused by name; never ignored silently.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "model/arch.h"

namespace quire {

// config[key] as an integer in [minimum, 2^31); throws InvalidArgument with the value. Keys hold their first spelling
// that is there: {"n_embd", "hidden_size"}.
int64_t config_size(const Json& config, std::initializer_list<const char*> keys, int64_t minimum = 1);
// The same, `missing` when no key is there or it is null.
int64_t config_size_or(const Json& config, std::initializer_list<const char*> keys, int64_t missing,
                       int64_t minimum = 1);
// config[key]: `missing` when it is not there, 0 when it is null (transformers: None switches the feature off).
double config_number_or_off(const Json& config, const char* key, double missing);
int32_t config_window_or_off(const Json& config, const char* key, int32_t missing);

// "silu", "gelu_pytorch_tanh" ...: throws NotSupported naming key and value.
Activation parse_activation(const Json& config, const char* key, const char* missing);

// Throws NotSupported when a key that changes the maths in some family has a value other than the neutral one and is
// not among `handled`.
void refuse_other_keys(const Json& config, std::initializer_list<std::string_view> handled);
// Throws NotSupported unless config[key] is missing, null or `neutral`.
void refuse_unless(const Json& config, const char* key, const Json& neutral);

// From rope_parameters (transformers 5; flat or per layer type), or rope_scaling and rope_theta (transformers 4).
RopeSpec parse_rope(const Json& config, int32_t head_dim, std::string_view layer_type = "full_attention");

// What a family's configuration class has for missing keys.
struct DecoderDefaults {
  double norm_eps = 1e-6;
  bool tie_word_embeddings = false;
  int64_t num_kv_heads = 0;  // 0: as many as heads
  int64_t head_dim = 0;      // 0: hidden_size / heads
  const char* activation_key = "hidden_act";
  const char* activation = "silu";
};

// A decoder of pre-norm blocks with RMSNorm, rotary attention without biases and a gated feed-forward.
ArchSpec dense_decoder(const Json& config, const DecoderDefaults& defaults = {});

// One entry a layer, "full_attention" or "sliding_attention"; empty when the key is missing. Checks length and values.
std::vector<std::string> parse_layer_types(const Json& config, size_t num_layers);

// The windows of Qwen 2 and 3: none unless use_sliding_window, then by layer_types or from max_window_layers on.
void apply_qwen_windows(const Json& config, ArchSpec& arch);

// Fills max_positions and max_positions_key from the keys and the rope scaling that limit the context, as vLLM does.
void apply_context_length(const Json& config, ArchSpec& arch);

// Names of Llama's modules, with the biases the spec has; families take all or parts.
WeightRules outer_names();
WeightRules attention_names(const ArchSpec& arch);
WeightRules gated_ffn_names(const ArchSpec& arch);
WeightRules llama_names(const ArchSpec& arch);  // all, and the two norms of a block

}  // namespace quire
