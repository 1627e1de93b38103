// Matching of a checkpoint's names with an architecture's rules, then packing; see weight_loader.h.
//
// Everything is matched and checked first, so that a checkpoint that does not fit costs no packing and one message
// tells all that is wrong. Then tensors are packed in the order of the file, and each one's pages are given back.
#include "model/weight_loader.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>
#include <optional>
#include <span>

#include "base/hash.h"
#include "base/log.h"
#include "base/threads.h"
#include "model/weight_slots.h"

namespace quire {
namespace {

class MemoryCheckpoint final : public Checkpoint {
 public:
  explicit MemoryCheckpoint(std::vector<CheckpointTensor> tensors) : tensors_(std::move(tensors)) {}
  const std::vector<CheckpointTensor>& tensors() const override { return tensors_; }

 private:
  std::vector<CheckpointTensor> tensors_;
};

// A rule for one layer (-1: none), and the tensor that was found for it.
struct BoundRule {
  const WeightRule* rule = nullptr;
  int32_t layer = -1;
  std::vector<int64_t> shape;
  const CheckpointTensor* tensor = nullptr;
};

using BoundRules = std::map<std::string, BoundRule>;

std::string expand(const std::string& pattern, int32_t layer) {
  const size_t at = pattern.find("{i}");
  return at == std::string::npos ? pattern : pattern.substr(0, at) + std::to_string(layer) + pattern.substr(at + 3);
}

const LayerSpec& layer_spec(const ArchSpec& arch, int32_t layer) {
  return arch.layers.at(static_cast<size_t>(std::max(layer, 0)));
}

int64_t dimension(const std::string& symbol, const ArchSpec& arch, int32_t layer) {
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
  QUIRE_CHECK(false, "unknown dimension \"", symbol, "\" in a weight rule");
  return 0;
}

BoundRules bind_rules(const ArchSpec& arch) {
  BoundRules bound;
  for (const WeightRule& rule : arch.weights.rules) {
    const bool per_layer = rule.name.find("{i}") != std::string::npos;
    const int32_t num_copies = per_layer ? static_cast<int32_t>(arch.layers.size()) : 1;
    for (int32_t i = 0; i < num_copies; ++i) {
      BoundRule entry{.rule = &rule, .layer = per_layer ? i : -1};
      for (const std::string& symbol : rule.shape) entry.shape.push_back(dimension(symbol, arch, entry.layer));
      const bool inserted = bound.emplace(expand(rule.name, i), std::move(entry)).second;
      QUIRE_CHECK(inserted, "two weight rules for ", expand(rule.name, i));
    }
  }
  return bound;
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

bool is_ignored(const std::string& name, const WeightRules& rules) {
  return std::ranges::any_of(rules.ignored, [&](const std::string& pattern) {
    return matches(name, pattern) || matches(rules.optional_prefix + name, pattern);
  });
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
  std::vector<std::string> missing, unexpected, misshaped;

  void throw_if_any(const ArchSpec& arch) const {
    if (missing.empty() && unexpected.empty() && misshaped.empty()) return;
    std::string message = str_cat("the checkpoint does not fit its config.json (", arch.name, "):");
    const auto add = [&](const char* what, const std::vector<std::string>& items) {
      if (items.empty()) return;
      message += str_cat("\n", items.size(), " ", what, ":");
      for (const std::string& item : items) message += "\n  " + item;
    };
    add("missing", missing);
    add("unexpected", unexpected);
    add("misshaped", misshaped);
    throw InvalidArgument(message);
  }
};

BoundRule* find_rule(BoundRules& bound, const std::string& name, const std::string& optional_prefix) {
  auto found = bound.find(name);
  if (found == bound.end() && !optional_prefix.empty()) found = bound.find(optional_prefix + name);
  return found == bound.end() ? nullptr : &found->second;
}

BoundRule* find_slot(BoundRules& bound, Slot slot) {
  for (auto& [name, entry] : bound) {
    if (entry.rule->slot == slot) return &entry;
  }
  return nullptr;
}

// One table serves both ends of a tied model. Checkpoints may hold it under either name or, saved by torch, both.
void settle_tied_head(const ArchSpec& arch, const Checkpoint& checkpoint, BoundRules& bound) {
  BoundRule* head = arch.tie_word_embeddings ? find_slot(bound, Slot::lm_head) : nullptr;
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

BoundRules match(const ArchSpec& arch, const Checkpoint& checkpoint) {
  BoundRules bound = bind_rules(arch);
  Misfits misfits;
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    BoundRule* entry = find_rule(bound, tensor.name, arch.weights.optional_prefix);
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
    if (entry.tensor->shape != entry.shape) {
      misfits.misshaped.push_back(str_cat(entry.tensor->name, ": ", shape_text(entry.tensor->shape),
                                          ", but config.json makes it ", shape_text(entry.shape)));
    } else if (!is_float(entry.tensor->dtype)) {
      misfits.misshaped.push_back(
          str_cat(entry.tensor->name, ": ", dtype_name(entry.tensor->dtype), " is no float dtype"));
    }
  }
  std::ranges::sort(misfits.unexpected);
  misfits.throw_if_any(arch);
  return bound;
}

// A run of rows of a stored tensor and where they go.
struct Piece {
  Slot target = Slot::embedding;
  PackPart part = PackPart::whole;
  int64_t source_row = 0;
  int64_t rows = 0;
  int64_t row_begin = 0;  // in the target, or in its gate or up half
};

std::vector<Piece> feed_forward_pieces(Slot slot, const DenseFfn& ffn, Slot target) {
  const bool is_vector = target == Slot::gate_up_bias;
  const auto half = [&](bool up, int64_t source_row) {
    const PackPart part = is_vector || !ffn.gated ? PackPart::whole : up ? PackPart::up : PackPart::gate;
    return Piece{target, part, source_row, ffn.width, is_vector && up && ffn.gated ? ffn.width : 0};
  };
  if (slot == Slot::gate || slot == Slot::gate_bias) return {half(false, 0)};
  if (slot == Slot::up || slot == Slot::up_bias) return {half(true, 0)};
  return {half(false, 0), half(true, ffn.width)};
}

std::vector<Piece> pieces_of(const ArchSpec& arch, Slot slot, int32_t layer, int64_t num_rows) {
  const AttnSpec& attn = layer_spec(arch, layer).attn;
  const auto& ffn = std::get<DenseFfn>(layer_spec(arch, layer).ffn);
  switch (slot) {
    case Slot::q:
    case Slot::q_bias:
      return {{slot == Slot::q ? Slot::qkv : Slot::qkv_bias, PackPart::whole, 0, attn.q_dim(), 0}};
    case Slot::k:
    case Slot::k_bias:
      return {{slot == Slot::k ? Slot::qkv : Slot::qkv_bias, PackPart::whole, 0, attn.kv_dim(), attn.q_dim()}};
    case Slot::v:
    case Slot::v_bias:
      return {{slot == Slot::v ? Slot::qkv : Slot::qkv_bias, PackPart::whole, 0, attn.kv_dim(),
               attn.q_dim() + attn.kv_dim()}};
    case Slot::gate:
    case Slot::up:
    case Slot::gate_up:
      return feed_forward_pieces(slot, ffn, Slot::gate_up);
    case Slot::gate_bias:
    case Slot::up_bias:
    case Slot::gate_up_bias:
      return feed_forward_pieces(slot, ffn, Slot::gate_up_bias);
    default:
      return {{slot, PackPart::whole, 0, num_rows, 0}};
  }
}

// The values of a tensor in a dtype that kernels pack and at an aligned address; `staging` holds them if they had to
// move.
struct Source {
  const std::byte* data = nullptr;
  DType dtype = DType::f32;
};

Source readable_source(const CheckpointTensor& tensor, std::vector<std::byte>& staging) {
  const size_t num_bytes = tensor_bytes(tensor);
  const size_t size = dtype_bytes(tensor.dtype);
  if (tensor.dtype != DType::f64 && reinterpret_cast<uintptr_t>(tensor.data) % size == 0) {
    return {static_cast<const std::byte*>(tensor.data), tensor.dtype};
  }
  staging.resize(num_bytes);
  std::memcpy(staging.data(), tensor.data, num_bytes);
  if (tensor.dtype != DType::f64) return {staging.data(), tensor.dtype};
  for (size_t i = 0; i < num_bytes / size; ++i) {  // in place: element i shrinks from [8i, 8i + 8) to [4i, 4i + 4)
    double wide = 0.0;
    std::memcpy(&wide, staging.data() + i * sizeof(double), sizeof(double));
    const float narrow = static_cast<float>(wide);
    std::memcpy(staging.data() + i * sizeof(float), &narrow, sizeof(float));
  }
  return {staging.data(), DType::f32};
}

float element_as_float(const Source& source, int64_t index) {
  if (source.dtype == DType::f32) return reinterpret_cast<const float*>(source.data)[index];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(source.data)[index];
  return source.dtype == DType::bf16 ? bf16_to_float(bits) : f16_to_float(bits);
}

class Filler {
 public:
  Filler(const ArchSpec& arch, const KernelTable& kernels, Stream stream, Weights& weights)
      : arch_(arch), kernels_(kernels), stream_(stream), slots_(weight_slots(arch, weights)) {
    for (const WeightSlot& slot : slots_) unfilled_[{slot.slot, slot.layer}] = slot.rows;
  }

  void fill(const BoundRule& entry) {
    std::vector<std::byte> staging;
    const Source source = readable_source(*entry.tensor, staging);
    const bool transposed = entry.rule->transposed;
    const int64_t num_rows = entry.shape[transposed ? 1 : 0];
    const int64_t num_cols = entry.shape.size() == 1 ? 0 : entry.shape[transposed ? 0 : 1];
    for (const Piece& piece : pieces_of(arch_, entry.rule->slot, entry.layer, num_rows)) {
      const WeightSlot& slot = find(piece.target, entry.layer);
      QUIRE_CHECK(slot.cols == num_cols && piece.source_row + piece.rows <= num_rows, "the rule for ", entry.rule->name,
                  " has the wrong shape: ", num_cols, " columns, the slot has ", slot.cols);
      unfilled_[{slot.slot, slot.layer}] -= piece.rows;
      if (slot.vector != nullptr) {
        copy_vector(source, piece, slot);
      } else {
        pack(source, piece, slot, transposed ? 1 : num_cols, transposed ? num_rows : 1);
      }
    }
  }

  // A slot that no rule fills would compute with garbage.
  void check_complete() const {
    for (const auto& [key, rows] : unfilled_) {
      QUIRE_CHECK(rows == 0, arch_.name, " has no weight rule for ", rows, " rows of slot ",
                  static_cast<int>(key.first), " of layer ", key.second);
    }
  }

 private:
  const WeightSlot& find(Slot slot, int32_t layer) const {
    const auto found =
        std::ranges::find_if(slots_, [&](const WeightSlot& s) { return s.slot == slot && s.layer == layer; });
    QUIRE_CHECK(found != slots_.end(), arch_.name, " has a weight rule for slot ", static_cast<int>(slot), " of layer ",
                layer, ", which its ArchSpec does not have");
    return *found;
  }

  void copy_vector(const Source& source, const Piece& piece, const WeightSlot& slot) const {
    const float added = slot.plus_one ? 1.0f : 0.0f;
    for (int64_t i = 0; i < piece.rows; ++i) {
      (*slot.vector)[piece.row_begin + i] = element_as_float(source, piece.source_row + i) + added;
    }
  }

  void pack(const Source& source, const Piece& piece, const WeightSlot& slot, int64_t row_stride,
            int64_t col_stride) const {
    kernels_.pack_weight(
        {.source = source.data + piece.source_row * row_stride * static_cast<int64_t>(dtype_bytes(source.dtype)),
         .source_dtype = source.dtype,
         .rows = piece.rows,
         .cols = slot.cols,
         .row_stride = row_stride,
         .col_stride = col_stride,
         .part = piece.part,
         .row_begin = piece.row_begin,
         .weight = *slot.matrix},
        stream_);
  }

  const ArchSpec& arch_;
  const KernelTable& kernels_;
  Stream stream_;
  std::vector<WeightSlot> slots_;
  std::map<std::pair<Slot, int32_t>, int64_t> unfilled_;
};

// Uniform in [-1e-3, 1e-3], a function of (seed, index) alone.
float dummy_value(uint64_t seed, int64_t index) {
  const uint64_t bits = mix64(seed + static_cast<uint64_t>(index)) >> 40;
  return (static_cast<float>(bits) * 0x1p-23f - 1.0f) * 1e-3f;
}

}  // namespace

std::unique_ptr<Checkpoint> checkpoint_in_memory(std::vector<CheckpointTensor> tensors) {
  return std::make_unique<MemoryCheckpoint>(std::move(tensors));
}

void load_weights(const ArchSpec& arch, const Checkpoint& checkpoint, const KernelTable& kernels, Stream stream,
                  Weights& weights) {
  const BoundRules bound = match(arch, checkpoint);
  Filler filler(arch, kernels, stream, weights);
  std::multimap<const CheckpointTensor*, const BoundRule*> by_place;  // the order of the file is the order of its pages
  for (const auto& [name, entry] : bound) {
    if (entry.tensor != nullptr) by_place.emplace(entry.tensor, &entry);
  }
  for (const auto& [tensor, entry] : by_place) {
    filler.fill(*entry);
    checkpoint.release(*tensor);
  }
  filler.check_complete();
}

void load_dummy_weights(const ArchSpec& arch, const KernelTable& kernels, Stream stream, Weights& weights) {
  ThreadPool threads(default_num_threads());
  std::vector<float> values;
  for (const WeightSlot& slot : weight_slots(arch, weights)) {
    const uint64_t seed =
        hash_combine(static_cast<uint64_t>(slot.slot), static_cast<uint64_t>(static_cast<uint32_t>(slot.layer)));
    if (slot.vector != nullptr) {
      for (int64_t i = 0; i < slot.rows; ++i) {
        (*slot.vector)[i] = dummy_value(seed, i) + (slot.plus_one ? 1.0f : 0.0f);
      }
      continue;
    }
    const int64_t half_rows = slot.gated ? slot.rows / 2 : slot.rows;
    const int64_t chunk_rows = std::max<int64_t>(32, (int64_t{1} << 22) / slot.cols / 32 * 32);
    for (int64_t begin = 0; begin < slot.rows;) {
      const int64_t half_end = begin < half_rows ? half_rows : slot.rows;
      const int64_t rows = std::min(chunk_rows, half_end - begin);
      values.resize(static_cast<size_t>(rows * slot.cols));
      threads.parallel_for(rows, [&](int64_t r) {
        for (int64_t c = 0; c < slot.cols; ++c) {
          values[static_cast<size_t>(r * slot.cols + c)] = dummy_value(seed, (begin + r) * slot.cols + c);
        }
      });
      const bool up = slot.gated && begin >= half_rows;
      kernels.pack_weight({.source = values.data(),
                           .source_dtype = DType::f32,
                           .rows = rows,
                           .cols = slot.cols,
                           .row_stride = slot.cols,
                           .part = !slot.gated ? PackPart::whole
                                   : up        ? PackPart::up
                                               : PackPart::gate,
                           .row_begin = up ? begin - half_rows : begin,
                           .weight = *slot.matrix},
                          stream);
      begin += rows;
    }
  }
}

}  // namespace quire
