// From hidden states to pooled vectors, on the device: final norm, choice or mean of rows, the layers behind.
//
// Stateless. What is done to a finished vector (normalization, probabilities) is done on the host, by the engine. Verb:
// pool.
#pragma once

#include "base/json.h"
#include "model/decoder.h"
#include "model/sentence_transformers.h"

namespace quire {

// Settles how a model pools: the architecture's way, the sentence-transformers files, then what the caller says.
// Throws InvalidArgument: an unknown task or pooling type, a task that the model has no head for, columns out of range.
void resolve_pooler(const Json& config, const SentenceTransformersConfig& files, const PoolerOptions& options,
                    ArchSpec& arch);

// "LAST", "mean": throws InvalidArgument naming what there is.
PoolingType parse_pooling_type(const std::string& name);
// "LAST", or for PoolingType::modes their names.
std::string pooling_name(const PoolerSpec& pooler);
const char* pooling_activation_name(PoolingActivation activation);

// What the host makes of hidden states that it pools: the pooler's modes, or the one that its type is.
std::vector<PoolingMode> modes_of(const PoolerSpec& pooler);

// Columns of pooled states, and of the answer, before any are chosen.
inline int64_t state_columns(const ArchSpec& arch, PoolingType type) {
  return arch.hidden * (type == PoolingType::modes ? static_cast<int64_t>(modes_of(arch.pooler).size()) : 1);
}
inline int64_t pooled_columns(const ArchSpec& arch, PoolingType type, bool with_head) {
  return with_head && !arch.pooler.head.empty() ? arch.pooler.head.back().outputs : state_columns(arch, type);
}
inline int64_t pooled_columns(const ArchSpec& arch, bool with_head) {
  return pooled_columns(arch, arch.pooler.type, with_head);
}

// One vector a token instead of one a text.
inline bool is_token_wise(PoolingType type) { return type == PoolingType::all || type == PoolingType::step; }
// The states of all tokens come to the host, which pools them and sends the rows back for the layers behind.
inline bool is_pooled_on_host(PoolingType type) { return type == PoolingType::modes; }

class Pooler {
 public:
  // All references are kept.
  Pooler(const ArchSpec& arch, const Weights& weights, const Decoder& decoder)
      : arch_(arch), weights_(weights), decoder_(decoder) {}

  // float32 [num_seqs, hidden], or [num_tokens, hidden] where each token has a vector or the host pools. `rows`: the
  // tokens that first and last mean, one a sequence.
  Tensor pool(const Tensor& hidden, const DeviceBatch& batch, PoolingType type, const int32_t* rows,
              const Ops& ops) const;
  // The layers behind pooling, of each row.
  Tensor head(Tensor pooled, const Ops& ops) const;

 private:
  const ArchSpec& arch_;
  const Weights& weights_;
  const Decoder& decoder_;
};

}  // namespace quire
