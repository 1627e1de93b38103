// Which slots an architecture has and where they lie in a region; see weights.h and weight_slots.h.
#include "model/weights.h"

#include <algorithm>

#include "base/check.h"
#include "model/relative_bias.h"
#include "model/weight_slots.h"

namespace quire {
namespace {

constexpr size_t kAlignment = 64;

class SlotList {
 public:
  SlotList(WeightFormat format, std::vector<WeightSlot>& slots) : format_(format), slots_(slots) {}
  void set_layer(int32_t layer) { layer_ = layer; }

  void matrix(Slot slot, PackedWeight& weight, int64_t rows, int64_t cols) {
    matrix_of(format_.dtype, slot, weight, rows, cols);
  }
  // A matrix that may be int8.
  void linear(Slot slot, PackedWeight& weight, int64_t rows, int64_t cols, bool gated = false) {
    matrix_of(format_.int8 ? DType::i8 : format_.dtype, slot, weight, rows, cols);
    slots_.back().gated = gated;
  }
  void float32_matrix(Slot slot, PackedWeight& weight, int64_t rows, int64_t cols) {
    matrix_of(DType::f32, slot, weight, rows, cols);
  }
  void vector(Slot slot, float*& values, int64_t size, bool plus_one = false) {
    slots_.push_back({.slot = slot, .layer = layer_, .rows = size, .plus_one = plus_one, .vector = &values});
  }
  void relative_bias(const ArchSpec& arch, float*& values) {
    const int64_t num_heads = arch.layers.front().attn.num_heads;
    vector(Slot::relative_bias, values, num_heads * num_relative_distances(*arch.relative_bias));
    slots_.back().num_stored = num_heads * arch.relative_bias->num_buckets;
  }
  void norm(const NormSpec& spec, Slot weight_slot, float*& weight, int64_t size) {
    if (spec.affine) vector(weight_slot, weight, size, spec.plus_one);
  }
  void norm(const NormSpec& spec, Slot weight_slot, float*& weight, Slot bias_slot, float*& bias, int64_t size) {
    norm(spec, weight_slot, weight, size);
    if (spec.affine && spec.bias) vector(bias_slot, bias, size);
  }

 private:
  void matrix_of(DType dtype, Slot slot, PackedWeight& weight, int64_t rows, int64_t cols) {
    slots_.push_back({.slot = slot, .layer = layer_, .rows = rows, .cols = cols, .dtype = dtype, .matrix = &weight});
  }

  WeightFormat format_;
  std::vector<WeightSlot>& slots_;
  int32_t layer_ = -1;
};

// Of ranks whose products are summed, the first one alone has the bias.
void list_attention(const LayerSpec& spec, int64_t hidden, bool is_first_rank, LayerWeights& weights, SlotList& list) {
  const AttnSpec& attn = spec.attn;
  if (spec.attn_norm) {
    list.norm(spec.norm, Slot::attn_norm, weights.attn_norm, Slot::attn_norm_bias, weights.attn_norm_bias, hidden);
  }
  list.linear(Slot::qkv, weights.qkv, attn.qkv_dim(), hidden);
  if (attn.qkv_bias) list.vector(Slot::qkv_bias, weights.qkv_bias, attn.qkv_dim());
  if (attn.qk_norm.has_value()) {
    list.norm(*attn.qk_norm, Slot::q_norm, weights.q_norm, attn.head_dim);
    list.norm(*attn.qk_norm, Slot::k_norm, weights.k_norm, attn.head_dim);
  }
  list.linear(Slot::o, weights.o, hidden, attn.q_dim());
  if (attn.o_bias && is_first_rank) list.vector(Slot::o_bias, weights.o_bias, hidden);
  if (attn.sinks) list.vector(Slot::sinks, weights.sinks, attn.num_heads);
  if (spec.place == NormPlace::sandwich) {
    list.norm(spec.norm, Slot::attn_post_norm, weights.attn_post_norm, hidden);
  }
}

void list_feed_forward(const LayerSpec& spec, int64_t hidden, bool is_first_rank, LayerWeights& weights,
                       SlotList& list) {
  const auto& ffn = std::get<DenseFfn>(spec.ffn);
  const int64_t inner = ffn.gated ? 2 * ffn.width : ffn.width;
  list.norm(spec.norm, Slot::ffn_norm, weights.ffn_norm, Slot::ffn_norm_bias, weights.ffn_norm_bias, hidden);
  list.linear(Slot::gate_up, weights.up, inner, hidden, ffn.gated);
  if (ffn.bias) list.vector(Slot::gate_up_bias, weights.up_bias, inner);
  list.linear(Slot::down, weights.down, hidden, ffn.width);
  if (ffn.has_down_bias() && is_first_rank) list.vector(Slot::down_bias, weights.down_bias, hidden);
  if (spec.place == NormPlace::sandwich) list.norm(spec.norm, Slot::ffn_post_norm, weights.ffn_post_norm, hidden);
}

void list_pooling_head(const PoolerSpec& pooler, Weights& weights, SlotList& list) {
  QUIRE_CHECK(pooler.head.size() <= kMaxHeadLayers, pooler.head.size(), " layers after pooling");
  for (size_t i = 0; i < pooler.head.size(); ++i) {
    const HeadLayer& layer = pooler.head[i];
    list.float32_matrix(head_slot(i), weights.pooling_head[i].weight, layer.outputs, layer.inputs);
    Weights::HeadWeights& head = weights.pooling_head[i];
    if (layer.bias) list.vector(head_bias_slot(i), head.bias, layer.outputs);
    if (!layer.norm.has_value()) continue;
    list.norm(*layer.norm, head_norm_slot(i), head.norm, head_norm_bias_slot(i), head.norm_bias, layer.outputs);
  }
}

// What a slot takes, in whole lines.
size_t packed_bytes(const WeightSlot& slot, const KernelTable& kernels) {
  const size_t num_bytes = slot.matrix != nullptr
                               ? kernels.packed_weight_bytes(slot.rows, slot.cols, slot.dtype, slot.gated)
                               : static_cast<size_t>(slot.rows) * sizeof(float);
  return (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

std::vector<WeightSlot> weight_slots(const ArchSpec& arch, Weights& weights) {
  std::vector<WeightSlot> slots;
  SlotList list(weights.format, slots);
  weights.layers.resize(arch.layers.size());
  list.matrix(Slot::embedding, weights.embedding, arch.own_vocab_rows(), arch.embed_dim);
  if (arch.learned_positions.has_value()) {
    const LearnedPositions& positions = *arch.learned_positions;
    list.matrix(Slot::position_embedding, weights.position_embedding, positions.max_positions + positions.offset,
                arch.hidden);
  }
  if (arch.num_token_types > 0) {
    list.matrix(Slot::token_type_embedding, weights.token_type_embedding, arch.num_token_types, arch.hidden);
  }
  if (arch.relative_bias.has_value()) list.relative_bias(arch, weights.relative_bias);
  if (arch.embedding_norm.has_value()) {
    list.norm(*arch.embedding_norm, Slot::embedding_norm, weights.embedding_norm, Slot::embedding_norm_bias,
              weights.embedding_norm_bias, arch.hidden);
  }
  if (arch.embed_dim != arch.hidden) {
    list.matrix(Slot::embed_proj, weights.embed_proj, arch.hidden, arch.embed_dim);
    list.matrix(Slot::out_proj, weights.out_proj, arch.embed_dim, arch.hidden);
  }
  for (size_t i = 0; i < arch.layers.size(); ++i) {
    list.set_layer(static_cast<int32_t>(i));
    list_attention(arch.layers[i], arch.hidden, arch.is_first_rank(), weights.layers[i], list);
    list_feed_forward(arch.layers[i], arch.hidden, arch.is_first_rank(), weights.layers[i], list);
  }
  list.set_layer(-1);
  if (arch.final_norm.has_value()) {
    list.norm(*arch.final_norm, Slot::final_norm, weights.final_norm, Slot::final_norm_bias, weights.final_norm_bias,
              arch.hidden);
  }
  if (arch.is_first_rank()) list_pooling_head(arch.pooler, weights, list);
  if (!arch.has_lm_head) return slots;
  if (!arch.tie_word_embeddings || weights.format.int8) {
    list.linear(Slot::lm_head, weights.head, arch.own_vocab_rows(), arch.embed_dim);
  }
  if (arch.lm_head_bias) list.vector(Slot::lm_head_bias, weights.head_bias, arch.own_vocab_rows());
  return slots;
}

size_t place_weights(const ArchSpec& arch, WeightFormat format, const KernelTable& kernels, std::byte* base,
                     Weights& weights, const OffloadPlan& offload) {
  weights = Weights{.format = format};
  size_t end = offload.total_slot_bytes();
  int32_t layer = -1;
  size_t layer_end = 0;  // in the slot of an offloaded layer
  for (const WeightSlot& slot : weight_slots(arch, weights)) {
    const int32_t ordinal = offload.ordinal(slot.layer);
    if (slot.layer != layer && ordinal >= 0) {
      layer_end = static_cast<size_t>(ordinal % offload.num_slots) * offload.slot_bytes;
    }
    layer = slot.layer;
    size_t& offset = ordinal >= 0 ? layer_end : end;
    std::byte* place = base == nullptr ? nullptr : base + offset;
    if (slot.matrix != nullptr) {
      *slot.matrix = {.data = place, .dtype = slot.dtype, .gated = slot.gated, .rows = slot.rows, .cols = slot.cols};
    } else {
      *slot.vector = reinterpret_cast<float*>(place);
    }
    offset += packed_bytes(slot, kernels);
  }
  if (arch.has_lm_head && arch.tie_word_embeddings && !format.int8) weights.head = weights.embedding;
  return end;
}

std::vector<size_t> layer_weight_bytes(const ArchSpec& arch, WeightFormat format, const KernelTable& kernels) {
  Weights weights{.format = format};
  std::vector<size_t> sizes(arch.layers.size());
  for (const WeightSlot& slot : weight_slots(arch, weights)) {
    if (slot.layer >= 0) sizes[static_cast<size_t>(slot.layer)] += packed_bytes(slot, kernels);
  }
  return sizes;
}

size_t gemm_workspace_bytes(const Weights& weights, const KernelTable& kernels, bool batch_invariant) {
  size_t most = 0;
  const bool uses_library = !batch_invariant && kernels.gemm_library_workspace_bytes != nullptr;
  const auto bytes_for = uses_library ? kernels.gemm_library_workspace_bytes : kernels.gemm_workspace_bytes;
  if (bytes_for == nullptr) return most;
  const auto consider = [&](const PackedWeight& weight) {
    if (weight.rows > 0) most = std::max(most, bytes_for(weight.rows, weight.cols, weight.dtype));
  };
  for (const LayerWeights& layer : weights.layers) {
    for (const PackedWeight* weight : {&layer.qkv, &layer.o, &layer.up, &layer.down}) consider(*weight);
  }
  for (const PackedWeight* weight : {&weights.embed_proj, &weights.out_proj, &weights.head}) consider(*weight);
  for (const Weights::HeadWeights& layer : weights.pooling_head) consider(layer.weight);
  return most;
}

int64_t num_parameters(const ArchSpec& arch) {
  Weights weights;
  int64_t count = 0;
  for (const WeightSlot& slot : weight_slots(arch, weights)) count += slot.num_elements();
  return count;
}

}  // namespace quire
