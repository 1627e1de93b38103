// From matched tensors, or from nothing, to packed slots; see weight_loader.h.
//
// Tensors are taken in the order of the file, those of offloaded layers after the others and layer by layer; each one's
// pages are given back.
#include "model/weight_loader.h"

#include <algorithm>
#include <map>

#include "base/check.h"
#include "base/hash.h"
#include "model/packed_copy.h"
#include "model/relative_bias.h"
#include "model/shard.h"
#include "model/weight_match.h"
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

int64_t longest_row(const std::vector<WeightSlot>& slots) {
  int64_t most = 1;
  for (const WeightSlot& slot : slots) most = std::max(most, slot.cols);
  return most;
}

class Filler {
 public:
  Filler(const ArchSpec& arch, std::vector<WeightSlot> slots, WeightSink& sink, Extent extent = Extent::whole)
      : arch_(arch), slots_(std::move(slots)), sink_(sink), extent_(extent) {
    for (const WeightSlot& slot : slots_) unfilled_[{slot.slot, slot.layer}] = RowRanges(slot.rows);
  }

  void fill(const BoundRule& entry) {
    if (entry.rule->slot == Slot::relative_bias) return fill_relative_bias(entry);
    const bool transposed = entry.rule->transposed;
    const int64_t num_rows = entry.shape[transposed ? 1 : 0];
    const int64_t num_cols = entry.shape.size() == 1 ? 0 : entry.shape[transposed ? 0 : 1];
    for (const Piece& piece : pieces(entry, num_rows)) {
      const WeightSlot& slot = find(piece.target, entry.layer);
      const int64_t cols = piece.cols > 0 ? piece.cols : num_cols;
      QUIRE_CHECK(slot.cols == cols && piece.source_col + cols <= num_cols && piece.source_row + piece.rows <= num_rows,
                  "the rule for ", entry.rule->name, " has the wrong shape: ", num_cols, " columns, the slot has ",
                  slot.cols);
      note_filled(slot, piece.row_begin + (piece.part == PackPart::up ? slot.rows / 2 : 0), piece.rows);
      StoredMatrix source = {.dtype = entry.tensor->dtype,
                             .rows = piece.rows,
                             .cols = std::max<int64_t>(1, cols),
                             .row_stride = transposed || num_cols == 0 ? 1 : num_cols,
                             .col_stride = transposed ? num_rows : 1};
      source.data = static_cast<const std::byte*>(entry.tensor->data) +
                    static_cast<size_t>(piece.source_row * source.row_stride + piece.source_col * source.col_stride) *
                        dtype_bytes(source.dtype);
      if (slot.vector != nullptr) {
        sink_.write_vector(source, slot.plus_one ? 1.0f : 0.0f, *slot.vector + piece.row_begin);
      } else {
        sink_.pack(source, piece.part, piece.row_begin, *slot.matrix);
      }
    }
  }

  std::vector<const WeightSlot*> slots_of(const BoundRule& entry) const {
    std::vector<const WeightSlot*> slots;
    for (const Piece& piece : pieces(entry, entry.shape[entry.rule->transposed ? 1 : 0])) {
      slots.push_back(&find(piece.target, entry.layer));
    }
    return slots;
  }

  const SlotRows& unfilled() const { return unfilled_; }

  // A slot that no rule fills would compute with garbage.
  void check_complete() const {
    for (const auto& [key, rows] : unfilled_) {
      QUIRE_CHECK(rows.empty(), arch_.name, " has no weight rule for ", rows.num_rows(), " rows of slot ",
                  static_cast<int>(key.first), " of layer ", key.second);
    }
    QUIRE_CHECK(num_twice_ == 0, arch_.name, " has two weight rules each for ", num_twice_, " rows");
  }

 private:
  std::vector<Piece> pieces(const BoundRule& entry, int64_t num_rows) const {
    std::vector<Piece> pieces = pieces_of(arch_, entry.rule->slot, entry.layer, num_rows, extent_);
    if (entry.rule->slot == Slot::embedding && arch_.tie_word_embeddings && has(Slot::lm_head)) {
      pieces.push_back(pieces.front());  // the int8 copy
      pieces.back().target = Slot::lm_head;
    }
    return pieces;
  }

  void note_filled(const WeightSlot& slot, int64_t begin, int64_t num_rows) {
    RowRanges& rows = unfilled_.at({slot.slot, slot.layer});
    const int64_t before = rows.num_rows();
    rows.remove(begin, begin + num_rows);
    num_twice_ += num_rows - (before - rows.num_rows());
  }

  void fill_relative_bias(const BoundRule& entry) {
    const WeightSlot& slot = find(Slot::relative_bias, entry.layer);
    const DType dtype = entry.tensor->dtype;
    const Piece heads = pieces(entry, entry.shape[0]).front();
    const std::vector<std::byte> biases = relative_bias_by_distance(*arch_.relative_bias, entry.tensor->data, dtype,
                                                                    entry.shape[1], heads.source_col, heads.cols);
    sink_.write_vector({.data = biases.data(), .dtype = dtype, .rows = slot.rows}, 0.0f, *slot.vector);
    note_filled(slot, 0, slot.rows);
  }

  bool has(Slot slot) const {
    return std::ranges::any_of(slots_, [&](const WeightSlot& s) { return s.slot == slot; });
  }

  const WeightSlot& find(Slot slot, int32_t layer) const {
    const auto found =
        std::ranges::find_if(slots_, [&](const WeightSlot& s) { return s.slot == slot && s.layer == layer; });
    QUIRE_CHECK(found != slots_.end(), arch_.name, " has a weight rule for slot ", static_cast<int>(slot), " of layer ",
                layer, ", which its ArchSpec does not have");
    return *found;
  }

  const ArchSpec& arch_;
  std::vector<WeightSlot> slots_;
  WeightSink& sink_;
  Extent extent_;
  SlotRows unfilled_;
  int64_t num_twice_ = 0;  // rows that were written again
};

class SlotWriter final : public WeightWriter {
 public:
  SlotWriter(const ArchSpec& arch, Device& device, std::vector<WeightSlot> slots, Extent extent,
             const StagingOptions& staging)
      : sink_(make_weight_sink(device, longest_row(slots), staging)), filler_(arch, std::move(slots), *sink_, extent) {}

  std::vector<const WeightSlot*> slots_of(const BoundRule& entry) const override { return filler_.slots_of(entry); }
  void write(const BoundRule& entry) override { filler_.fill(entry); }
  void flush() override { sink_->flush(); }
  const SlotRows& unfilled() const override { return filler_.unfilled(); }

 private:
  std::unique_ptr<WeightSink> sink_;
  Filler filler_;
};

// Elements that are made and packed at once.
constexpr int64_t kDummyChunk = int64_t{1} << 22;

int64_t dummy_chunk_rows(int64_t cols) { return std::max<int64_t>(32, kDummyChunk / cols / 32 * 32); }

// The number of a vector's first element in the whole model.
int64_t dummy_begin(const ArchSpec& arch, const WeightSlot& slot, const Piece& piece) {
  const bool is_by_head = slot.slot == Slot::relative_bias;  // piece: stored, its heads are columns
  return is_by_head ? piece.source_col * num_relative_distances(*arch.relative_bias) : piece.source_row;
}

// Columns of a slot in the whole model, which dummy values are numbered in.
int64_t whole_cols(const ArchSpec& arch, const WeightSlot& slot) {
  if (slot.layer < 0 || (slot.slot != Slot::o && slot.slot != Slot::down)) return slot.cols;
  const LayerSpec& layer = whole_arch(arch).layers.at(static_cast<size_t>(slot.layer));
  return slot.slot == Slot::o ? layer.attn.q_dim() : std::get<DenseFfn>(layer.ffn).width;
}

void pack_dummy(const WeightSlot& slot, const Piece& piece, int64_t cols, uint64_t seed, float* values,
                const Device& device) {
  for (int64_t begin = 0; begin < piece.rows;) {
    const int64_t rows = std::min(dummy_chunk_rows(cols), piece.rows - begin);
    device.kernels().fill_dummy(
        {.out = values, .count = rows * cols, .seed = seed, .index_begin = (piece.source_row + begin) * cols},
        device.stream());
    device.kernels().pack_weight({.source = values + piece.source_col,
                                  .source_dtype = DType::f32,
                                  .rows = rows,
                                  .cols = slot.cols,
                                  .row_stride = cols,
                                  .part = piece.part,
                                  .row_begin = piece.row_begin + begin,
                                  .weight = *slot.matrix},
                                 device.stream());
    begin += rows;
  }
}

}  // namespace

std::unique_ptr<Checkpoint> checkpoint_in_memory(std::vector<CheckpointTensor> tensors) {
  return std::make_unique<MemoryCheckpoint>(std::move(tensors));
}

void load_weights(const ArchSpec& arch, const Checkpoint& checkpoint, Device& device, Weights& weights,
                  const LoadOptions& options) {
  std::vector<BoundRule> found = match_weights(arch, checkpoint);
  weights.spelling = best_spelling(arch, checkpoint);
  // Offloaded layers come last, one after the other: they share slots.
  const auto ordinal = [&](const BoundRule& entry) {
    return options.offload != nullptr ? options.offload->plan().ordinal(entry.layer) : -1;
  };
  std::ranges::stable_sort(found, {}, ordinal);
  std::vector<WeightSlot> slots = weight_slots(arch, weights);
  std::string description;
  if (options.packed != nullptr && options.packed->is_worth_it()) {
    description = describe_packed(arch, checkpoint, found, slots, device.kernels().name, options.packed->region());
    checkpoint.release_all();
    if (!description.empty() && options.packed->show(description)) return;
  }
  const std::unique_ptr<WeightSink> sink = make_weight_sink(device, longest_row(slots), options.staging);
  Filler filler(arch, std::move(slots), *sink);
  for (size_t i = 0; i < found.size(); ++i) {
    filler.fill(found[i]);
    checkpoint.release(*found[i].tensor);
    if (ordinal(found[i]) < 0 || (i + 1 < found.size() && found[i + 1].layer == found[i].layer)) continue;
    sink->flush();
    options.offload->store(found[i].layer);
  }
  sink->flush();
  filler.check_complete();
  device.synchronize();
  if (!description.empty()) options.packed->store(description);
}

void load_dummy_weights(const ArchSpec& arch, Device& device, Weights& weights, const LoadOptions& options) {
  const std::vector<WeightSlot> slots = weight_slots(arch, weights);
  int64_t chunk = 0;
  for (const WeightSlot& slot : slots) {
    if (slot.matrix == nullptr) continue;
    const int64_t cols = whole_cols(arch, slot);
    chunk = std::max(chunk, std::min(dummy_chunk_rows(cols), slot.rows) * cols);
  }
  const std::unique_ptr<Region> values =
      device.allocate(RegionTag::workspace, static_cast<size_t>(chunk) * sizeof(float));
  const SynchronizeAtEnd synchronize(device);
  for (size_t i = 0; i < slots.size(); ++i) {
    const WeightSlot& slot = slots[i];
    const bool is_tied_head = slot.slot == Slot::lm_head && arch.tie_word_embeddings;
    const auto number = static_cast<uint64_t>(is_tied_head ? Slot::embedding : slot.slot);
    const uint64_t seed = hash_combine(number, static_cast<uint64_t>(static_cast<uint32_t>(slot.layer)));
    for (const Piece& piece : pieces_of(arch, slot.slot, slot.layer, slot.rows)) {
      if (slot.vector != nullptr) {
        device.kernels().fill_dummy({.out = *slot.vector + piece.row_begin,
                                     .count = piece.rows,
                                     .seed = seed,
                                     .index_begin = dummy_begin(arch, slot, piece),
                                     .added = slot.plus_one ? 1.0f : 0.0f},
                                    device.stream());
      } else {
        pack_dummy(slot, piece, whole_cols(arch, slot), seed, reinterpret_cast<float*>(values->data()), device);
      }
    }
    const bool ends_layer = i + 1 == slots.size() || slots[i + 1].layer != slot.layer;
    if (options.offload != nullptr && ends_layer) options.offload->store(slot.layer);
  }
  device.synchronize();
}

void load_weights_or_dummy(const ArchSpec& arch, const Checkpoint* checkpoint, Device& device, Weights& weights,
                           const LoadOptions& options) {
  if (checkpoint == nullptr) {
    load_dummy_weights(arch, device, weights, options);
  } else {
    load_weights(arch, *checkpoint, device, weights, options);
  }
}

std::unique_ptr<WeightWriter> make_weight_writer(const ArchSpec& arch, Device& device, Weights& weights, Extent extent,
                                                 const StagingOptions& staging) {
  return std::make_unique<SlotWriter>(arch, device, weight_slots(arch, weights), extent, staging);
}

}  // namespace quire
