// How long a context the configuration allows; see apply_context_length in arch_common.h.
#include <algorithm>
#include <limits>

#include "model/arch_common.h"

namespace quire {

void apply_context_length(const Json& config, ArchSpec& arch) {
  int64_t derived = std::numeric_limits<int64_t>::max();
  const auto consider = [&](const char* key) {
    const int64_t length = config_size_or(config, {key}, derived);
    if (length < derived) arch.max_positions_key = key;
    derived = std::min(derived, length);
  };
  for (const char* key : {"max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length",
                          "max_target_positions", "max_sequence_length", "max_seq_length", "seq_len"}) {
    consider(key);
  }
  if (const int64_t length = config_size_or(config, {"model_max_length"}, 0); length > 0) {
    arch.max_positions_key = "model_max_length";
    derived = length;
  }
  if (arch.max_positions_key.empty()) return;
  // Llama 3's and LongRoPE's configurations give the stretched length, the others the trained one.
  const RopeSpec& rope = arch.layers.front().attn.rope;
  const bool stretches =
      rope.scaling == RopeScaling::linear || rope.scaling == RopeScaling::dynamic || rope.scaling == RopeScaling::yarn;
  if (rope.scaling == RopeScaling::yarn) derived = rope.original_max_positions;
  arch.max_positions = stretches ? static_cast<int64_t>(static_cast<double>(derived) * rope.factor) : derived;
}

}  // namespace quire
