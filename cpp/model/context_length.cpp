// How long a context the configuration allows; see apply_context_length in arch_common.h.
#include <algorithm>
#include <limits>
#include <utility>

#include "model/arch_common.h"

namespace quire {

namespace {

void stretch_by_rope(int64_t derived, ArchSpec& arch) {
  if (arch.max_positions_key.empty()) return;
  // Llama 3's and LongRoPE's configurations give the stretched length, the others the trained one.
  const RopeSpec& rope = arch.layers.front().attn.rope;
  const bool stretches =
      rope.scaling == RopeScaling::linear || rope.scaling == RopeScaling::dynamic || rope.scaling == RopeScaling::yarn;
  if (rope.scaling == RopeScaling::yarn) derived = rope.original_max_positions;
  arch.max_positions = stretches ? static_cast<int64_t>(static_cast<double>(derived) * rope.factor) : derived;
}

}  // namespace

void apply_context_length(const Json& config, ArchSpec& arch) {
  const int64_t family_limit = std::exchange(arch.max_positions, 0);
  const std::string family_key = std::exchange(arch.max_positions_key, "");
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
  stretch_by_rope(derived, arch);
  if (family_limit == 0 || (arch.max_positions != 0 && arch.max_positions <= family_limit)) return;
  arch.max_positions = family_limit;
  arch.max_positions_key = family_key;
}

}  // namespace quire
