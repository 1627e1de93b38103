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
const char* pooling_type_name(PoolingType type);
const char* pooling_activation_name(PoolingActivation activation);

// Columns of the answer, before any are chosen.
inline int64_t pooled_columns(const ArchSpec& arch, bool with_head) {
  return with_head && !arch.pooler.head.empty() ? arch.pooler.head.back().outputs : arch.hidden;
}

// One vector a token instead of one a text.
inline bool is_token_wise(PoolingType type) { return type == PoolingType::all || type == PoolingType::step; }

class Pooler {
 public:
  // All references are kept.
  Pooler(const ArchSpec& arch, const Weights& weights, const Decoder& decoder)
      : arch_(arch), weights_(weights), decoder_(decoder) {}

  // float32 [num_seqs or num_tokens, columns]. `rows`: the tokens that first and last mean, one a sequence.
  Tensor pool(const Tensor& hidden, const DeviceBatch& batch, PoolingType type, const int32_t* rows, bool with_head,
              const Ops& ops) const;

 private:
  const ArchSpec& arch_;
  const Weights& weights_;
  const Decoder& decoder_;
};

}  // namespace quire
