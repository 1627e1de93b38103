// What the sampling kernel reads: one SamplingRow a sampled sequence, built from the requests' parameters. Verb:
// sample.
//
// Decides: how parameters become rows (penalty counts, bad words, the min_tokens mask, seeds). Does not know: logits,
// devices. The arrays are reused from step to step. Engine thread only.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "engine/sequence.h"
#include "params/sampling.h"

namespace quire {

// A sequence's sampling state between steps: how often each token occurred, kept only when a penalty asks for it.
class TokenCounts {
 public:
  // Brings the counts up to date with the sequence's tokens.
  const std::vector<TokenCount>& update(const Sequence& sequence);

 private:
  std::vector<TokenCount> counts_;
  std::unordered_map<int32_t, size_t> index_;  // token id -> entry of counts_
  int32_t num_counted_ = 0;
};

class SamplingBatch {
 public:
  void clear();
  // `seed` is the request's; `counts` belongs to the sequence and outlives the step.
  void add(const Sequence& sequence, uint64_t seed, TokenCounts& counts);
  // Sets the rows' pointers; call once after the last add().
  void finish();

  const std::vector<SamplingRow>& rows() const { return rows_; }
  int32_t max_logprobs() const { return max_logprobs_; }  // -1: no row asks for any

 private:
  struct Range {
    size_t begin, end;
  };
  std::vector<SamplingRow> rows_;
  std::vector<int32_t> banned_ids_;
  std::vector<Range> banned_ranges_;  // one a row, into banned_ids_
  std::vector<TokenBias> biases_;
  std::vector<Range> bias_ranges_;
  int32_t max_logprobs_ = -1;
};

// What came back: one entry a row.
struct SampledTokens {
  std::vector<int32_t> token_ids;
  int32_t logprobs_stride = 0;
  std::vector<int32_t> logprob_ids;    // [num_rows, logprobs_stride]
  std::vector<float> logprobs;         // [num_rows, logprobs_stride]
  std::vector<int32_t> sampled_ranks;  // [num_rows]
};

}  // namespace quire
