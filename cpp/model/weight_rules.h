// Which tensor of a checkpoint goes where: a list of rules, part of an ArchSpec.
//
// Decides: names, slots, symbolic shapes. Does not know: files, memory layouts. The loader (weight_loader.h) expands
// "{i}", checks the shapes, fuses (q, k, v) and (gate, up), and reports all missing and unexpected names at once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace quire {

// Destinations. The per-layer ones start at attn_norm. q, k, v and qkv all end in one packed matrix, so do gate, up and
// gate_up.
enum class Slot : uint8_t {
  embedding,
  position_embedding,
  embed_proj,
  out_proj,
  final_norm,
  final_norm_bias,
  lm_head,
  lm_head_bias,
  attn_norm,
  attn_norm_bias,
  q,
  k,
  v,
  qkv,
  q_bias,
  k_bias,
  v_bias,
  qkv_bias,
  q_norm,
  k_norm,
  o,
  o_bias,
  sinks,
  attn_post_norm,
  ffn_norm,
  ffn_norm_bias,
  gate,
  up,
  gate_up,
  up_gate,  // the same, stored the other way round
  gate_bias,
  up_bias,
  gate_up_bias,
  down,
  down_bias,
  ffn_post_norm,
  token_type_embedding,
  embedding_norm,
  embedding_norm_bias,
  head_0,  // the layers of a PoolerSpec
  head_1,
  head_2,
  head_3,
  head_bias_0,
  head_bias_1,
  head_bias_2,
  head_bias_3,
  head_norm_0,
  head_norm_1,
  head_norm_2,
  head_norm_3,
  head_norm_bias_0,
  head_norm_bias_1,
  head_norm_bias_2,
  head_norm_bias_3,
  relative_bias,  // [buckets, num_heads]
};

constexpr Slot head_slot(size_t layer) { return static_cast<Slot>(static_cast<size_t>(Slot::head_0) + layer); }
constexpr Slot head_bias_slot(size_t layer) {
  return static_cast<Slot>(static_cast<size_t>(Slot::head_bias_0) + layer);
}
constexpr Slot head_norm_slot(size_t layer) {
  return static_cast<Slot>(static_cast<size_t>(Slot::head_norm_0) + layer);
}
constexpr Slot head_norm_bias_slot(size_t layer) {
  return static_cast<Slot>(static_cast<size_t>(Slot::head_norm_bias_0) + layer);
}

struct WeightRule {
  std::string name;  // "model.layers.{i}.self_attn.q_proj.weight"
  Slot slot = Slot::embedding;
  std::vector<std::string> shape;  // as stored; symbols of weight_match.cpp: "vocab", "hidden", "q_dim", "kv_dim",
                                   // "qkv_dim", "head_dim", "ffn", "2ffn", "head_in_0", "head_out_0", ...
  bool transposed = false;         // stored [inputs, outputs] (GPT-2's Conv1D)
  bool optional = false;           // absence is fine (a tied lm_head)
};

struct WeightRules {
  std::vector<WeightRule> rules;
  std::vector<std::string>
      ignored;  // names or "{i}" patterns that may be there and are not needed (rotary inv_freq, causal masks)
  std::string optional_prefix;  // "model." / "transformer.": checkpoints saved from the bare model lack it
  std::vector<std::string> dropped_prefixes;  // the other way round: rules lack them, checkpoints may have them
  // Other rules that belong to these, one set for each way in which a family's weights are named and fused: those of
  // the set that most names of a checkpoint fit. Empty: `rules` are all.
  std::vector<std::vector<WeightRule>> spellings;

  WeightRules& operator+=(const WeightRules& other) {
    rules.insert(rules.end(), other.rules.begin(), other.rules.end());
    ignored.insert(ignored.end(), other.ignored.begin(), other.ignored.end());
    dropped_prefixes.insert(dropped_prefixes.end(), other.dropped_prefixes.begin(), other.dropped_prefixes.end());
    spellings.insert(spellings.end(), other.spellings.begin(), other.spellings.end());
    if (optional_prefix.empty()) optional_prefix = other.optional_prefix;
    return *this;
  }
  friend WeightRules operator+(WeightRules left, const WeightRules& right) { return left += right; }
};

}  // namespace quire
