// From packed slots to tensors; see weight_reader.h.
#include "model/weight_reader.h"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "base/check.h"
#include "model/relative_bias.h"
#include "model/weight_slots.h"

namespace quire {
namespace {

constexpr int64_t kChunkElements = int64_t{4} << 20;

bool is_tied_head(const ArchSpec& arch, const BoundRule& entry) {
  return entry.rule->slot == Slot::lm_head && arch.has_lm_head && arch.tie_word_embeddings;
}

void store(float value, DType dtype, std::byte* to) {
  if (dtype == DType::f32) {
    std::memcpy(to, &value, sizeof(value));
    return;
  }
  const uint16_t bits = dtype == DType::bf16 ? float_to_bf16(value) : float_to_f16(value);
  std::memcpy(to, &bits, sizeof(bits));
}

class Reader {
 public:
  // Puts the parts that one rank has into `bytes`.
  Reader(const WeightAccess& access, const BoundRule& entry, Extent extent, std::vector<std::byte>& bytes)
      : access_(access),
        entry_(entry),
        extent_(extent),
        bytes_(bytes),
        slots_(weight_slots(access.arch, access.weights)) {
    const bool transposed = entry.rule->transposed;
    num_rows_ = entry.shape[transposed ? 1 : 0];
    num_cols_ = entry.shape.size() == 1 ? 1 : entry.shape[transposed ? 0 : 1];
    row_stride_ = transposed ? 1 : num_cols_;
    col_stride_ = transposed ? num_rows_ : 1;
    bytes_.resize(static_cast<size_t>(num_rows_ * num_cols_) * dtype_bytes(access.weights.format.dtype));
  }

  void read() {
    access_.device.synchronize();
    const bool is_offloaded = access_.offload != nullptr && access_.offload->plan().ordinal(entry_.layer) >= 0;
    if (is_offloaded) access_.offload->bring(entry_.layer);
    if (entry_.rule->slot == Slot::relative_bias) {
      read_relative_bias();
    } else {
      for (const Piece& piece : pieces_of(access_.arch, entry_.rule->slot, entry_.layer, num_rows_, extent_))
        read(piece);
    }
  }

 private:
  const WeightSlot& find(Slot slot) const {
    const auto found =
        std::ranges::find_if(slots_, [&](const WeightSlot& s) { return s.slot == slot && s.layer == entry_.layer; });
    QUIRE_CHECK(found != slots_.end(), entry_.rule->name, " has no slot");
    return *found;
  }

  void put(int64_t row, int64_t col, float value) {
    const DType dtype = access_.weights.format.dtype;
    store(value, dtype,
          bytes_.data() + static_cast<size_t>(row * row_stride_ + col * col_stride_) * dtype_bytes(dtype));
  }

  std::vector<float> vector_of(const WeightSlot& slot) const {
    std::vector<float> values(static_cast<size_t>(slot.rows));
    access_.device.copy_to_host(values.data(), *slot.vector, values.size() * sizeof(float));
    return values;
  }

  void read(const Piece& piece) {
    const WeightSlot& slot = find(piece.target);
    if (slot.vector != nullptr) {
      const std::vector<float> values = vector_of(slot);
      for (int64_t i = 0; i < piece.rows; ++i) {
        put(piece.source_row + i, 0, values[static_cast<size_t>(piece.row_begin + i)] - (slot.plus_one ? 1.0f : 0.0f));
      }
      return;
    }
    const int64_t cols = piece.cols > 0 ? piece.cols : num_cols_;
    const int64_t chunk_rows = std::clamp<int64_t>(kChunkElements / cols, 1, std::max<int64_t>(1, piece.rows));
    std::vector<float> values(static_cast<size_t>(chunk_rows * cols));
    const auto region = access_.device.allocate(RegionTag::workspace, values.size() * sizeof(float));
    for (int64_t begin = 0; begin < piece.rows; begin += chunk_rows) {
      const int64_t rows = std::min(chunk_rows, piece.rows - begin);
      access_.device.kernels().unpack_weight({.weight = *slot.matrix,
                                              .part = piece.part,
                                              .row_begin = piece.row_begin + begin,
                                              .rows = rows,
                                              .out = reinterpret_cast<float*>(region->data())},
                                             access_.device.stream());
      access_.device.copy_to_host(values.data(), region->data(), static_cast<size_t>(rows * cols) * sizeof(float));
      for (int64_t r = 0; r < rows; ++r) {
        const float* const row = values.data() + r * cols;
        for (int64_t c = 0; c < cols; ++c) put(piece.source_row + begin + r, piece.source_col + c, row[c]);
      }
    }
  }

  // [buckets, heads] from [heads, distances].
  void read_relative_bias() {
    const Piece heads = pieces_of(access_.arch, Slot::relative_bias, entry_.layer, num_rows_, extent_).front();
    const RelativeBias& spec = *access_.arch.relative_bias;
    const std::vector<float> values = vector_of(find(Slot::relative_bias));
    size_t next = 0;
    for (int64_t head = heads.source_col; head < heads.source_col + heads.cols; ++head) {
      for (int32_t distance = -spec.max_distance; distance <= spec.max_distance; ++distance, ++next) {
        put(relative_bucket(spec, distance), head, values[next]);
      }
    }
  }

  const WeightAccess& access_;
  const BoundRule& entry_;
  Extent extent_;
  std::vector<std::byte>& bytes_;
  std::vector<WeightSlot> slots_;
  int64_t num_rows_ = 0, num_cols_ = 0, row_stride_ = 0, col_stride_ = 0;
};

// Embeddings come first, layers in their order, the rest behind them.
auto place_of(const std::string& name, const BoundRule& entry) {
  const bool is_front = entry.layer < 0 && entry.rule->slot < Slot::out_proj;
  const int group = entry.layer >= 0 ? 1 : is_front ? 0 : 2;
  return std::tuple(group, entry.layer, entry.rule->slot, name);
}

const BoundRule& find_rule(const ArchSpec& arch, const BoundRules& bound, const std::string& name) {
  auto found = bound.find(name);
  require(found != bound.end(), str_cat("the model (", arch.name, ") has no weight ", name));
  if (is_tied_head(arch, found->second)) {
    found = std::ranges::find_if(bound, [](const auto& item) { return item.second.rule->slot == Slot::embedding; });
  }
  return found->second;
}

bool has_part(const ArchSpec& arch, const BoundRule& entry) {
  return !pieces_of(arch, entry.rule->slot, entry.layer, entry.shape[entry.rule->transposed ? 1 : 0]).empty();
}

}  // namespace

std::vector<ReadableWeight> readable_weights(const WeightAccess& access, Extent extent) {
  const BoundRules bound = bind_rules(access.arch, access.weights.spelling, extent);
  std::vector<const BoundRules::value_type*> entries;
  std::string embedding;
  for (const auto& item : bound) {
    entries.push_back(&item);
    if (item.second.rule->slot == Slot::embedding) embedding = item.first;
  }
  std::ranges::sort(entries, {}, [](const auto* item) { return place_of(item->first, item->second); });
  std::vector<ReadableWeight> weights;
  weights.reserve(entries.size());
  for (const auto* item : entries) {
    weights.push_back({item->first, item->second.shape,
                       is_tied_head(access.arch, item->second) ? embedding : std::string(),
                       extent == Extent::shard && !has_part(access.arch, item->second)});
  }
  return weights;
}

std::vector<std::byte> read_weight(const WeightRanks& ranks, const std::string& name) {
  const WeightAccess& access = ranks.all.front();
  const BoundRules bound = bind_rules(access.arch, access.weights.spelling);
  const BoundRule& entry = find_rule(access.arch, bound, name);
  std::vector<std::byte> bytes;
  // One after the other, since they fill one array.
  for (size_t reading = 0; reading < ranks.all.size(); ++reading) {
    ranks.each([&](size_t rank) {
      if (rank == reading) Reader(ranks.all[rank], entry, Extent::whole, bytes).read();
    });
  }
  return bytes;
}

std::vector<std::byte> read_shard(const WeightRanks& ranks, size_t rank, const std::string& name) {
  const WeightAccess& own = ranks.all.at(rank);
  const BoundRules bound = bind_rules(own.arch, own.weights.spelling, Extent::shard);
  const BoundRule& entry = find_rule(own.arch, bound, name);
  const size_t reading = has_part(own.arch, entry) ? rank : 0;
  std::vector<std::byte> bytes;
  ranks.each([&](size_t one) {
    if (one == reading) Reader(ranks.all[one], entry, Extent::shard, bytes).read();
  });
  return bytes;
}

}  // namespace quire
