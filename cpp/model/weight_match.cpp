// Matching of a checkpoint's names with an architecture's rules; see weight_match.h.
#include "model/weight_match.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <utility>

#include "base/log.h"
#include "model/shard.h"

namespace quire {
namespace {

using BoundRules = std::map<std::string, BoundRule>;

std::string expand(const std::string& pattern, int32_t layer) {
  const size_t at = pattern.find("{i}");
  return at == std::string::npos ? pattern : pattern.substr(0, at) + std::to_string(layer) + pattern.substr(at + 3);
}

const LayerSpec& layer_spec(const ArchSpec& arch, int32_t layer) {
  return arch.layers.at(static_cast<size_t>(std::max(layer, 0)));
}

// "head_in_0", "head_out_2": the inputs and outputs of a layer after pooling.
std::optional<int64_t> head_dimension(const std::string& symbol, const PoolerSpec& pooler) {
  for (size_t i = 0; i < pooler.head.size(); ++i) {
    if (symbol == str_cat("head_in_", i)) return pooler.head[i].inputs;
    if (symbol == str_cat("head_out_", i)) return pooler.head[i].outputs;
  }
  return std::nullopt;
}

// As stored: of the whole model.
int64_t dimension(const std::string& symbol, const ArchSpec& part, int32_t layer) {
  const ArchSpec& arch = whole_arch(part);
  const AttnSpec& attn = layer_spec(arch, layer).attn;
  const int64_t width = std::get<DenseFfn>(layer_spec(arch, layer).ffn).width;
  if (symbol == "vocab") return arch.vocab_size;
  if (symbol == "hidden") return arch.hidden;
  if (symbol == "embed") return arch.embed_dim;
  if (symbol == "positions") return arch.learned_positions->max_positions + arch.learned_positions->offset;
  if (symbol == "q_dim") return attn.q_dim();
  if (symbol == "kv_dim") return attn.kv_dim();
  if (symbol == "qkv_dim") return attn.qkv_dim();
  if (symbol == "head_dim") return attn.head_dim;
  if (symbol == "num_heads") return attn.num_heads;
  if (symbol == "ffn") return width;
  if (symbol == "2ffn") return 2 * width;
  if (symbol == "relative_buckets") return arch.relative_bias->num_buckets;
  if (symbol == "token_types") return arch.num_token_types;
  if (const auto size = head_dimension(symbol, arch.pooler); size.has_value()) return *size;
  QUIRE_CHECK(false, "unknown dimension \"", symbol, "\" in a weight rule");
  return 0;
}

// Does `name` equal `pattern`, "{i}" being any layer number?
bool matches(const std::string& name, const std::string& pattern) {
  const size_t at = pattern.find("{i}");
  if (at == std::string::npos) return name == pattern;
  const std::string_view tail = std::string_view(pattern).substr(at + 3);
  if (name.size() <= at + tail.size() || name.compare(0, at, pattern, 0, at) != 0 || !name.ends_with(tail))
    return false;
  const char* end = name.data() + name.size() - tail.size();
  unsigned number = 0;
  return std::from_chars(name.data() + at, end, number).ptr == end;
}

// The first conversions from TensorFlow kept its names for what LayerNorm has (bert-base-uncased).
std::string current_name(const std::string& name) {
  for (const auto& [old, now] :
       {std::pair("LayerNorm.gamma", "LayerNorm.weight"), {"LayerNorm.beta", "LayerNorm.bias"}}) {
    if (name.ends_with(old)) return name.substr(0, name.size() - std::strlen(old)) + now;
  }
  return name;
}

// The names under which rules may know a tensor.
std::vector<std::string> rule_names(const std::string& stored_name, const WeightRules& rules) {
  const std::string name = current_name(stored_name);
  std::vector<std::string> names = {name};
  if (!rules.optional_prefix.empty()) names.push_back(rules.optional_prefix + name);
  for (const std::string& prefix : rules.dropped_prefixes) {
    if (name.starts_with(prefix)) names.push_back(name.substr(prefix.size()));
  }
  return names;
}

bool is_ignored(const std::string& name, const WeightRules& rules) {
  const std::vector<std::string> names = rule_names(name, rules);
  return std::ranges::any_of(rules.ignored, [&](const std::string& pattern) {
    return std::ranges::any_of(names, [&](const std::string& one) { return matches(one, pattern); });
  });
}

// A layer may lack what the others have.
bool layer_has(const LayerSpec& layer, Slot slot) {
  return layer.attn_norm || (slot != Slot::attn_norm && slot != Slot::attn_norm_bias);
}

bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::f64;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += str_cat(i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

size_t tensor_bytes(const CheckpointTensor& tensor) {
  size_t num_bytes = dtype_bytes(tensor.dtype);
  for (const int64_t size : tensor.shape) num_bytes *= static_cast<size_t>(size);
  return num_bytes;
}

// What does not fit, for one message.
struct Misfits {
  std::vector<std::string> missing = {}, unexpected = {}, misshaped = {}, twice = {};

  void throw_if_any(const ArchSpec& arch,
                    const char* what_does_not = "the checkpoint does not fit its config.json") const {
    if (missing.empty() && unexpected.empty() && misshaped.empty() && twice.empty()) return;
    std::string message = str_cat(what_does_not, " (", arch.name, "):");
    const auto add = [&](const char* what, const std::vector<std::string>& items) {
      if (items.empty()) return;
      message += str_cat("\n", items.size(), " ", what, ":");
      for (const std::string& item : items) message += "\n  " + item;
    };
    add("missing", missing);
    add("unexpected", unexpected);
    add("misshaped", misshaped);
    add("given twice", twice);
    throw InvalidArgument(message);
  }
};

BoundRule* find_rule(BoundRules& bound, const std::string& name, const WeightRules& rules) {
  for (const std::string& one : rule_names(name, rules)) {
    if (const auto found = bound.find(one); found != bound.end()) return &found->second;
  }
  return nullptr;
}

// Empty: the tensor is what the rule says. `who_says` is for the message.
std::string shape_problem(const BoundRule& entry, const std::string& who_says = "config.json makes it") {
  if (entry.tensor->shape != entry.shape) {
    return str_cat(entry.tensor->name, ": ", shape_text(entry.tensor->shape), ", but ", who_says, " ",
                   shape_text(entry.shape));
  }
  if (!is_float(entry.tensor->dtype)) {
    return str_cat(entry.tensor->name, ": ", dtype_name(entry.tensor->dtype), " is no float dtype");
  }
  return {};
}

void cut_to_shard(const ArchSpec& arch, BoundRule& entry) {
  int64_t& num_rows = entry.shape[entry.rule->transposed ? 1 : 0];
  const std::vector<Piece> pieces = pieces_of(arch, entry.rule->slot, entry.layer, num_rows);
  if (pieces.empty()) return;
  num_rows = 0;
  for (const Piece& piece : pieces) num_rows += piece.rows;
  if (pieces.front().cols > 0) entry.shape[entry.rule->transposed ? 0 : 1] = pieces.front().cols;
}

void bind(const std::vector<WeightRule>& rules, const ArchSpec& arch, Extent extent, BoundRules& bound) {
  for (const WeightRule& rule : rules) {
    const bool per_layer = rule.name.find("{i}") != std::string::npos;
    const int32_t num_copies = per_layer ? static_cast<int32_t>(arch.layers.size()) : 1;
    for (int32_t i = 0; i < num_copies; ++i) {
      BoundRule entry{.rule = &rule, .layer = per_layer ? i : -1};
      if (!layer_has(layer_spec(arch, entry.layer), rule.slot)) continue;
      for (const std::string& symbol : rule.shape) entry.shape.push_back(dimension(symbol, arch, entry.layer));
      if (extent == Extent::shard) cut_to_shard(arch, entry);
      const bool inserted = bound.emplace(expand(rule.name, i), std::move(entry)).second;
      QUIRE_CHECK(inserted, "two weight rules for ", expand(rule.name, i));
    }
  }
}

BoundRule* find_slot(BoundRules& bound, Slot slot) {
  for (auto& [name, entry] : bound) {
    if (entry.rule->slot == slot) return &entry;
  }
  return nullptr;
}

// One table serves both ends of a tied model. Checkpoints may hold it under either name or, saved by torch, both.
void settle_tied_head(const ArchSpec& arch, const Checkpoint& checkpoint, BoundRules& bound) {
  const bool is_tied = arch.has_lm_head && arch.tie_word_embeddings;
  BoundRule* head = is_tied ? find_slot(bound, Slot::lm_head) : nullptr;
  if (head == nullptr) return;
  BoundRule* embedding = find_slot(bound, Slot::embedding);
  if (head->tensor != nullptr && embedding->tensor == nullptr) {
    embedding->tensor = head->tensor;
  } else if (head->tensor != nullptr) {
    const CheckpointTensor &a = *embedding->tensor, &b = *head->tensor;
    if (a.dtype != b.dtype || a.shape != b.shape || std::memcmp(a.data, b.data, tensor_bytes(a)) != 0) {
      log_warning("the checkpoint has a ", b.name, " that differs from ", a.name,
                  ", but tie_word_embeddings is true: it is not used. If it should be, load with "
                  "hf_overrides={\"tie_word_embeddings\": False}.");
    }
    checkpoint.release(b);
    checkpoint.release(a);
  }
  std::erase_if(bound, [&](const auto& item) { return &item.second == head; });
}

// Gate and up of the whole model are `width` rows each.
std::vector<Piece> feed_forward_pieces(Slot slot, const DenseFfn& ffn, int64_t width, int64_t begin, Slot target) {
  const bool is_vector = target == Slot::gate_up_bias;
  const auto half = [&](bool up, int64_t source_row) {
    const PackPart part = is_vector || !ffn.gated ? PackPart::whole : up ? PackPart::up : PackPart::gate;
    return Piece{target, part, source_row + begin, ffn.width, is_vector && up && ffn.gated ? ffn.width : 0};
  };
  if (slot == Slot::gate || slot == Slot::gate_bias || !ffn.gated) return {half(false, 0)};
  if (slot == Slot::up || slot == Slot::up_bias) return {half(true, 0)};
  if (slot == Slot::up_gate) return {half(true, 0), half(false, width)};
  return {half(false, 0), half(true, width)};
}

// Rows of q, k and v as they lie in one packed matrix, and in a stored one of the whole model.
std::vector<Piece> attention_pieces(Slot slot, const AttnSpec& attn, const AttnSpec& whole, const LayerShard& shard) {
  const bool is_bias = slot == Slot::q_bias || slot == Slot::k_bias || slot == Slot::v_bias || slot == Slot::qkv_bias;
  const Slot target = is_bias ? Slot::qkv_bias : Slot::qkv;
  const int64_t first_q = shard.first_head * attn.head_dim, first_kv = shard.first_kv_head * attn.head_dim;
  const auto q = [&](int64_t row) { return Piece{target, PackPart::whole, row + first_q, attn.q_dim(), 0}; };
  const auto k = [&](int64_t row) {
    return Piece{target, PackPart::whole, row + first_kv, attn.kv_dim(), attn.q_dim()};
  };
  const auto v = [&](int64_t row) {
    return Piece{target, PackPart::whole, row + first_kv, attn.kv_dim(), attn.q_dim() + attn.kv_dim()};
  };
  if (slot == Slot::q || slot == Slot::q_bias) return {q(0)};
  if (slot == Slot::k || slot == Slot::k_bias) return {k(0)};
  if (slot == Slot::v || slot == Slot::v_bias) return {v(0)};
  return {q(0), k(whole.q_dim()), v(whole.q_dim() + whole.kv_dim())};
}

bool is_of_pooling_head(Slot slot) { return slot >= Slot::head_0 && slot <= Slot::head_norm_bias_3; }

std::vector<Piece> pieces_of_whole(const ArchSpec& arch, Slot slot, int32_t layer, int64_t num_rows) {
  const AttnSpec& attn = layer_spec(arch, layer).attn;
  const auto& ffn = std::get<DenseFfn>(layer_spec(arch, layer).ffn);
  const LayerSpec& whole = layer_spec(whole_arch(arch), layer);
  const LayerShard shard = layer_shard(arch, layer);
  const int64_t width = std::get<DenseFfn>(whole.ffn).width;
  const Piece all = {slot, PackPart::whole, 0, num_rows, 0};
  switch (slot) {
    case Slot::q:
    case Slot::q_bias:
    case Slot::k:
    case Slot::k_bias:
    case Slot::v:
    case Slot::v_bias:
      return attention_pieces(slot, attn, whole.attn, shard);
    case Slot::qkv:
    case Slot::qkv_bias:
      if (arch.shard.num_ranks == 1) return {all};
      return attention_pieces(slot, attn, whole.attn, shard);
    case Slot::gate:
    case Slot::up:
    case Slot::gate_up:
    case Slot::up_gate:
      return feed_forward_pieces(slot, ffn, width, shard.ffn_begin, Slot::gate_up);
    case Slot::gate_bias:
    case Slot::up_bias:
    case Slot::gate_up_bias:
      return feed_forward_pieces(slot, ffn, width, shard.ffn_begin, Slot::gate_up_bias);
    case Slot::o:
      return {{slot, PackPart::whole, 0, num_rows, 0, shard.first_head * attn.head_dim, attn.q_dim()}};
    case Slot::down:
      return {{slot, PackPart::whole, 0, num_rows, 0, shard.ffn_begin, ffn.width}};
    case Slot::o_bias:
    case Slot::down_bias:
      return arch.is_first_rank() ? std::vector<Piece>{all} : std::vector<Piece>{};
    case Slot::relative_bias: {
      const int64_t first_head = layer_shard(arch, 0).first_head;  // one table for all layers, a column a head
      return {{slot, PackPart::whole, 0, num_rows, 0, first_head, attn.num_heads}};
    }
    case Slot::sinks:
      return {{slot, PackPart::whole, shard.first_head, attn.num_heads, 0}};
    case Slot::embedding:
    case Slot::lm_head:
    case Slot::lm_head_bias:
      return {{slot, PackPart::whole, arch.shard.vocab_begin, arch.own_vocab_rows(), 0}};
    default:
      if (is_of_pooling_head(slot) && !arch.is_first_rank()) return {};  // it alone pools
      return {all};
  }
}

}  // namespace

std::vector<Piece> pieces_of(const ArchSpec& arch, Slot slot, int32_t layer, int64_t num_rows, Extent extent) {
  std::vector<Piece> pieces = pieces_of_whole(arch, slot, layer, num_rows);
  if (extent == Extent::whole) return pieces;
  int64_t next_row = 0;
  for (Piece& piece : pieces) {
    piece.source_row = next_row;
    piece.source_col = 0;
    next_row += piece.rows;
  }
  return pieces;
}

BoundRules bind_rules(const ArchSpec& arch, size_t spelling, Extent extent) {
  BoundRules bound;
  bind(arch.weights.rules, arch, extent, bound);
  if (!arch.weights.spellings.empty()) bind(arch.weights.spellings.at(spelling), arch, extent, bound);
  return bound;
}

size_t best_spelling(const ArchSpec& arch, const Checkpoint& checkpoint) {
  size_t best = 0;
  ptrdiff_t most = -1;
  for (size_t i = 0; i < arch.weights.spellings.size(); ++i) {
    BoundRules bound;
    bind(arch.weights.spellings[i], arch, Extent::whole, bound);
    const ptrdiff_t count = std::ranges::count_if(checkpoint.tensors(), [&](const CheckpointTensor& tensor) {
      return find_rule(bound, tensor.name, arch.weights) != nullptr;
    });
    if (count <= most) continue;
    most = count;
    best = i;
  }
  return best;
}

std::vector<BoundRule> match_weights(const ArchSpec& arch, const Checkpoint& checkpoint) {
  BoundRules bound = bind_rules(arch, best_spelling(arch, checkpoint));
  Misfits misfits;
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    BoundRule* entry = find_rule(bound, tensor.name, arch.weights);
    if (entry != nullptr && entry->tensor == nullptr) {
      entry->tensor = &tensor;
    } else if (entry != nullptr || !is_ignored(tensor.name, arch.weights)) {
      misfits.unexpected.push_back(tensor.name);
    }
  }
  settle_tied_head(arch, checkpoint, bound);
  for (const auto& [name, entry] : bound) {
    if (entry.tensor == nullptr) {
      if (!entry.rule->optional) misfits.missing.push_back(name);
      continue;
    }
    if (std::string problem = shape_problem(entry); !problem.empty()) misfits.misshaped.push_back(std::move(problem));
  }
  std::ranges::sort(misfits.unexpected);
  misfits.throw_if_any(arch);
  std::vector<BoundRule> found;
  for (const auto& [name, entry] : bound) {
    if (entry.tensor != nullptr) found.push_back(entry);
  }
  std::ranges::stable_sort(found, {}, &BoundRule::tensor);
  return found;
}

// ------------------------------------------------------------------------------------------------ one tensor at a time

TensorBinder::TensorBinder(const ArchSpec& arch, size_t spelling, Extent extent) : arch_(arch), extent_(extent) {
  spellings_.push_back(bind_rules(arch, spelling, extent));
  for (size_t i = 0; i < arch.weights.spellings.size(); ++i) {
    if (i != spelling) spellings_.push_back(bind_rules(arch, i, extent));
  }
}

BoundRule* TensorBinder::find(const std::string& name, bool& is_ignored_name) {
  is_ignored_name = false;
  for (BoundRules& bound : spellings_) {
    BoundRule* entry = find_rule(bound, name, arch_.weights);
    if (entry != nullptr) return entry;
    is_ignored_name = is_ignored_name || is_ignored(name, arch_.weights);
    if (is_ignored_name) return nullptr;
  }
  return nullptr;
}

const BoundRule* TensorBinder::bind(const CheckpointTensor& tensor) {
  bool is_ignored_name = false;
  BoundRule* entry = find(tensor.name, is_ignored_name);
  if (entry == nullptr) {
    if (!is_ignored_name) unexpected_.push_back(tensor.name);
    return nullptr;
  }
  if (!seen_.insert(entry).second) {
    twice_.push_back(tensor.name);
    return nullptr;
  }
  entry->tensor = &tensor;
  const std::string who_says =
      extent_ == Extent::whole ? "config.json makes it" : str_cat("the part of rank ", arch_.shard.rank, " is");
  if (std::string problem = shape_problem(*entry, who_says); !problem.empty()) {
    misshaped_.push_back(std::move(problem));
    return nullptr;
  }
  // Of a tied model the head is the embedding; where both come, the embedding counts.
  if (entry->rule->slot != Slot::lm_head || !arch_.has_lm_head || !arch_.tie_word_embeddings) return entry;
  BoundRule* embedding = find_slot(spellings_.front(), Slot::embedding);
  if (seen_.contains(embedding)) return nullptr;
  embedding->tensor = &tensor;
  return embedding;
}

void TensorBinder::throw_if_misfits() const {
  Misfits{.unexpected = unexpected_, .misshaped = misshaped_, .twice = twice_}.throw_if_any(
      arch_, "the tensors do not fit the model");
}

}  // namespace quire
