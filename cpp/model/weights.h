// The weights of one rank as the decoder sees them: named slots over a `weights` region.
//
// Decides: which matrices are fused and where each lies in the region. Does not know: files (weight_loader.h fills it).
// Norm weights and biases are float32 always; matrices are packed by the backend in the model's dtype, those of the
// layers and the head also in int8.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "model/arch.h"
#include "params/kernel_table.h"

namespace quire {

// What matrices are packed as.
struct WeightFormat {
  DType dtype = DType::f32;
  bool int8 = false;  // the linear layers of the body and the head

  WeightFormat() = default;
  WeightFormat(DType model_dtype, bool int8_linears = false) : dtype(model_dtype), int8(int8_linears) {}
};

struct LayerWeights {
  float *attn_norm = nullptr, *attn_norm_bias = nullptr;  // [hidden]
  PackedWeight qkv;                                       // [qkv_dim, hidden]
  float* qkv_bias = nullptr;                              // [qkv_dim]
  float *q_norm = nullptr, *k_norm = nullptr;             // [head_dim]
  PackedWeight o;                                         // [hidden, q_dim]
  float* o_bias = nullptr;                                // [hidden]
  float* sinks = nullptr;                                 // [num_heads]
  float* attn_post_norm = nullptr;                        // [hidden]
  float *ffn_norm = nullptr, *ffn_norm_bias = nullptr;    // [hidden]
  PackedWeight up;                                        // [width or 2 * width (gated), hidden]
  float* up_bias = nullptr;                               // [width or 2 * width]
  PackedWeight down;                                      // [hidden, width]
  float* down_bias = nullptr;                             // [hidden]
  float* ffn_post_norm = nullptr;                         // [hidden]
};

struct Weights {
  WeightFormat format;
  size_t spelling = 0;                // of WeightRules::spellings: that of the checkpoint they came from
  PackedWeight embedding;             // [vocab, embed_dim]
  PackedWeight position_embedding;    // [max_positions + offset, hidden]
  PackedWeight token_type_embedding;  // [num_token_types, hidden]
  float *embedding_norm = nullptr, *embedding_norm_bias = nullptr;  // [hidden]
  float* relative_bias = nullptr;  // [num_heads, 2 * max_distance + 1], of a distance instead of a bucket
  PackedWeight embed_proj;         // [hidden, embed_dim], only when they differ
  PackedWeight out_proj;           // [embed_dim, hidden], likewise
  float *final_norm = nullptr, *final_norm_bias = nullptr;  // [hidden]
  // [vocab, embed_dim]; the embedding itself when tied, unless it is int8: an embedding never is.
  PackedWeight head;
  float* head_bias = nullptr;  // [vocab]
  struct HeadWeights {
    PackedWeight weight;  // [outputs, inputs], float32
    float* bias = nullptr;
    float *norm = nullptr, *norm_bias = nullptr;
  };
  std::array<HeadWeights, kMaxHeadLayers> pooling_head;
  std::vector<LayerWeights> layers;
};

// Layers that share slots on the device because their weights stay in host memory (layer_offload.h). Empty: none do.
struct OffloadPlan {
  std::vector<int32_t> layers;      // ascending; the i-th one uses slot i % num_slots
  std::vector<size_t> layer_bytes;  // packed
  int32_t num_slots = 0;
  size_t slot_bytes = 0;

  bool empty() const { return layers.empty(); }
  size_t host_bytes() const { return std::accumulate(layer_bytes.begin(), layer_bytes.end(), size_t{0}); }
  size_t total_slot_bytes() const { return static_cast<size_t>(num_slots) * slot_bytes; }
  // Which of the offloaded layers `layer` is; -1: it stays on the device.
  int32_t ordinal(int32_t layer) const {
    const auto found = std::lower_bound(layers.begin(), layers.end(), layer);
    return found != layers.end() && *found == layer ? static_cast<int32_t>(found - layers.begin()) : -1;
  }
};

// Brings the weights of layers that do not stay on the device. The decoder calls begin_step() before a forward pass and
// has the other two around each layer, in order; the weights of a layer are there for what is launched between them.
class LayerWeightSource {
 public:
  virtual ~LayerWeightSource() = default;
  virtual void begin_step() = 0;
  virtual void acquire(int32_t layer) = 0;
  virtual void release(int32_t layer) = 0;
};

// Lays the slots of `arch` out one after the other from `base` (64-byte aligned; nullptr to only measure) and returns
// their total size in bytes. The same arch, format and backend give the same layout. The shared slots of offloaded
// layers come first.
size_t place_weights(const ArchSpec& arch, WeightFormat format, const KernelTable& kernels, std::byte* base,
                     Weights& weights, const OffloadPlan& offload = {});

// The packed size of each layer.
std::vector<size_t> layer_weight_bytes(const ArchSpec& arch, WeightFormat format, const KernelTable& kernels);

// The largest gemm workspace that a product with one of these weights can use.
size_t gemm_workspace_bytes(const Weights& weights, const KernelTable& kernels, bool batch_invariant);

// Elements of all slots; a tied head counts once.
int64_t num_parameters(const ArchSpec& arch);

}  // namespace quire
