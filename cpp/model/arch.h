// The architecture of a model as data: everything families may differ in, one field each.
//
// Decides: what a decoder is made of. Does not know: weights in memory, devices, batches. One file a family
// (arch/<name>.cpp) fills an ArchSpec from config.json; Decoder::forward reads it and contains no model name.
// Values only; built once at load, const afterwards.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "model/pooling_modes.h"
#include "model/weight_rules.h"
#include "params/gemm.h"
#include "params/norm.h"
#include "quire/pooling_types.h"

namespace quire {

struct NormSpec {
  NormKind kind = NormKind::rms;
  float eps = 1e-5f;
  bool bias = false;      // LayerNorm's beta
  bool plus_one = false;  // Gemma stores weight - 1; one is added in float32 at load
  bool affine = true;     // false: neither weight nor bias (an OPT option)
};

// Where the norms of a block sit, x being the residual stream and f attention or feed-forward:
//   pre: x += f(norm(x))    post: x = norm(x + f(x))    sandwich: x += post_norm(f(norm(x)))
enum class NormPlace : uint8_t { pre, post, sandwich };

enum class RopeScaling : uint8_t { none, linear, dynamic, llama3, yarn, longrope };

// Rotary embedding; turned into a table of cosines and sines by rope_table.h.
struct RopeSpec {
  int32_t rotary_dim = 0;  // 0: no rotation
  double theta = 10000.0;
  bool interleaved = false;
  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;
  int64_t original_max_positions = 0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  double beta_fast = 32.0, beta_slow = 1.0;              // yarn
  bool truncate = true;                                  // yarn: round the correction range to whole dimensions
  double attention_factor = 1.0;                         // yarn, longrope: multiplies cosines and sines
  std::vector<double> short_factor, long_factor;         // longrope
};

struct AttnSpec {
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  RopeSpec rope;
  bool qkv_bias = false;
  bool o_bias = false;
  std::optional<NormSpec> qk_norm;  // RMSNorm over each head of q and k
  int32_t window = 0;               // > 0: a query at p sees keys in (p - window, p]; not causal: also up to p + window
  float softcap = 0.0f;
  bool sinks = false;
  bool alibi = false;
  float scale = 0.0f;  // of the scores; usually 1 / sqrt(head_dim)
  bool causal = true;

  int64_t q_dim() const { return static_cast<int64_t>(num_heads) * head_dim; }
  int64_t kv_dim() const { return static_cast<int64_t>(num_kv_heads) * head_dim; }
  int64_t qkv_dim() const { return q_dim() + 2 * kv_dim(); }
};

struct DenseFfn {
  int64_t width = 0;
  Activation activation = Activation::silu;
  bool gated = true;            // activation(gate(x)) * up(x), else activation(up(x))
  bool bias = false;            // of gate, up and down
  bool only_down_bias = false;  // of down alone

  bool has_down_bias() const { return bias || only_down_bias; }
};

struct LayerSpec {
  NormPlace place = NormPlace::pre;
  NormSpec norm;
  bool attn_norm = true;  // false: attention reads the stream as it is (ModernBERT's first layer; place is pre)
  AttnSpec attn;
  std::variant<DenseFfn> ffn;
};

struct LearnedPositions {
  int64_t max_positions = 0;  // rows of the table that positions may use
  int32_t offset = 0;         // the row of position 0 (OPT: 2)
  // Tokens that positions do not count, and that have position -1 themselves (RoBERTa: its padding); none: all count.
  std::optional<int32_t> uncounted_token;
};

// A bias on attention scores by the distance of key and query, one for all layers (T5). Distances share buckets: one
// each up to a quarter of them, then ever more, as their logarithm grows; the upper half is for keys after the query.
struct RelativeBias {
  int64_t num_buckets = 32;
  int32_t max_distance = 128;  // from here on all distances of a side share its last bucket
};

// A linear layer on pooled vectors, or on every token's: a projection, classifier or reward. Always in float32.
struct HeadLayer {
  int64_t inputs = 0, outputs = 0;
  bool bias = true;
  Activation activation = Activation::none;
  std::optional<NormSpec> norm;  // of what the activation gives
};
constexpr size_t kMaxHeadLayers = 4;

// How a model is pooled when nobody says otherwise.
struct PoolerSpec {
  PoolingType type = PoolingType::last;
  std::vector<PoolingMode> modes;  // of PoolingType::modes, joined in this order
  PoolingActivation activation = PoolingActivation::none;
  std::vector<HeadLayer> head;
  std::optional<int32_t> step_tag_id;       // PoolingType::step keeps the rows of these tokens; none: all
  std::vector<int32_t> returned_token_ids;  // columns of the answer; empty: all
  // A classifier that the checkpoint has as rows of its head for text: those of these tokens, or, of two, the second
  // less the first (is_label_difference): what a softmax of both would make of the second.
  std::vector<int32_t> label_token_ids;
  bool is_label_difference = false;
  bool is_late_interaction = false;  // embeds every token, through the head (ColBERT)
};

struct ArchSpec;

// Which part of a model an ArchSpec is, where several ranks share it (shard.h).
struct ShardSpec {
  int32_t rank = 0, num_ranks = 1;
  int64_t vocab_begin = 0, vocab_rows = 0;  // this rank's rows of embedding and head
  std::shared_ptr<const ArchSpec> whole;    // null: this is all of it
};

struct ArchSpec {
  std::string name;  // the architecture string of config.json that was matched
  int64_t hidden = 0;
  int64_t vocab_size = 0;
  int64_t embed_dim = 0;  // width of the embedding table; != hidden adds projections in and out (OPT-350m)
  float embedding_scale = 1.0f;
  bool embedding_scale_in_model_dtype = false;  // Gemma rounds the factor to the model's dtype first
  std::optional<LearnedPositions> learned_positions;
  std::optional<RelativeBias> relative_bias;
  int64_t num_token_types = 0;             // > 0: rows of a table that is added by token type (BERT's segments)
  std::optional<NormSpec> embedding_norm;  // of the sum of the embeddings
  std::vector<LayerSpec> layers;
  std::optional<NormSpec> final_norm;
  bool tie_word_embeddings = false;
  bool lm_head_bias = false;
  bool has_lm_head = true;  // false: hidden states and PoolerSpec are all there is
  PoolerSpec pooler;
  float logits_scale = 1.0f;
  float logits_softcap = 0.0f;
  // 0: nothing in the configuration limits the context. A builder may set a limit that the common keys do not tell.
  int64_t max_positions = 0;
  std::string max_positions_key;  // the config.json key max_positions came from, for messages
  WeightRules weights;
  ShardSpec shard;  // layers have this rank's heads and columns; vocab_size is the whole model's

  int64_t own_vocab_rows() const { return shard.num_ranks > 1 ? shard.vocab_rows : vocab_size; }
  bool is_first_rank() const { return shard.rank == 0; }

  template <typename Change>
  void each_layer(const Change& change) {
    for (LayerSpec& layer : layers) change(layer);
  }
};

}  // namespace quire
