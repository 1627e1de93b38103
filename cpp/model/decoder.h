// The forward pass: weights + batch + KV cache -> hidden states -> logits. Verb: forward.
//
// Stateless and without a model's name: what differs between families is read from the ArchSpec, layer by layer. The
// residual stream is float32 in every dtype, so that the precision of a bf16 model is that of its matrix products.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "model/arch.h"
#include "model/kv_cache.h"
#include "model/ops.h"
#include "model/weights.h"

namespace quire {

// The arrays of a Batch as addresses of the device.
struct DeviceBatch {
  int64_t num_tokens = 0;
  int64_t num_seqs = 0;
  int64_t num_samples = 0;
  int64_t max_kv_len = 0;  // no sequence of the batch is longer
  const int32_t* token_ids = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* token_type_ids = nullptr;  // read only with a table of token types
  const int32_t* slot_mapping = nullptr;
  const int32_t* query_start = nullptr;
  const int32_t* kv_lens = nullptr;
  const int32_t* block_tables = nullptr;
  int64_t block_table_stride = 0;
  const int32_t* sample_token_rows = nullptr;
};

// One table of cosines and sines a layer (layers with equal RopeSpecs share one); null without rotation.
struct RopeTables {
  std::vector<const float*> layers;
};

class Decoder {
 public:
  // All references are kept and must outlive the decoder.
  Decoder(const ArchSpec& arch, DType dtype, const Weights& weights, const RopeTables& rope, int num_threads)
      : arch_(arch), dtype_(dtype), weights_(weights), rope_(rope), num_threads_(num_threads) {}

  // Where the weights of layers that are not on the device come from. Kept; null (at first): all are there.
  void set_layer_source(LayerWeightSource* source) { layer_source_ = source; }

  // The residual stream after the last layer, float32 [num_tokens, hidden], before the final norm.
  Tensor forward(const DeviceBatch& batch, const KvCache& cache, const Ops& ops) const;
  // Rows `rows` of the hidden states after the final norm, float32 [num_rows, hidden]; null: all of them.
  Tensor final_hidden(const Tensor& hidden, const int32_t* rows, int64_t num_rows, const Ops& ops) const;
  // Logits of rows `rows` of the hidden states, float32 [num_rows, vocab_size]; where ranks share the model, the first
  // one has them, and the others a tensor without data.
  Tensor logits(const Tensor& hidden, const int32_t* rows, int64_t num_rows, const Ops& ops) const;
  // What the head reads of those rows, in the model's dtype [num_rows, head_width()]: behind the final norm.
  Tensor head_input(const Tensor& hidden, const int32_t* rows, int64_t num_rows, const Ops& ops) const;
  int64_t head_width() const;
  DType dtype() const { return dtype_; }

 private:
  // How a step's attention is shared out, for all layers that see the same keys with the same heads.
  struct AttentionPlan {
    const AttnSpec* spec = nullptr;
    void* data = nullptr;
    size_t num_bytes = 0;
  };
  // One forward pass.
  struct Step {
    const DeviceBatch& batch;
    const KvCache& cache;
    const Ops& ops;
    std::array<AttentionPlan, 4> plans = {};
    // Where ranks share the model: what a rank has of a sum, in turn, because slower ranks may still read the one
    // before; and the input of the next half where the sum's launch has made it.
    std::array<Tensor, 2> partials = {};
    int turn = 0;
    Tensor normed = {};
    bool is_normed = false;
  };

  Tensor float_rows(int64_t num_rows, const Ops& ops) const;
  void begin_exchange(Step& step) const;
  Tensor next_partial(Step& step, int64_t columns) const;
  void embed(const Tensor& x, Step& step) const;
  void embed_projected(EmbeddingParams params, const Tensor& x, Step& step) const;
  void finish_embedding(const DeviceBatch& batch, const Tensor& x, const Ops& ops) const;
  void plan(Step& step) const;
  void layer(size_t index, const Tensor& x, Step& step) const;
  // The attention half: input [tokens, hidden] in the model's dtype; adds to or writes `out` (float32).
  void attention(size_t index, const Tensor& input, bool accumulate, const Tensor& out, Step& step) const;
  void feed_forward(size_t index, const Tensor& input, bool accumulate, const Tensor& out, Step& step) const;
  // The product of a layer's half, of whose inputs a rank may have a part; and the norm before the next half, if it
  // follows at once.
  void sum_of_ranks(const Tensor& a, const PackedWeight& weight, const float* bias, bool accumulate, const Tensor& out,
                    const NextNorm& next, Step& step) const;
  NextNorm norm_before_feed_forward(size_t index, const Step& step) const;
  NextNorm norm_before_layer(size_t index, const Step& step) const;
  bool is_shared() const { return arch_.shard.num_ranks > 1; }
  // Everything but queries, output, workspace and plan.
  PagedAttentionParams attention_params(size_t index, const Step& step) const;

  const ArchSpec& arch_;
  DType dtype_;
  const Weights& weights_;
  const RopeTables& rope_;
  int num_threads_;
  LayerWeightSource* layer_source_ = nullptr;
};

}  // namespace quire
