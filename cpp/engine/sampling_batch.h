// What the sampling kernel reads: one SamplingRow a sampled sequence, built from the requests' parameters. Where rows
// of the device keep them, only those it does not have yet. Verb: sample.
//
// Decides: how parameters become rows (penalty counts, bad words, the min_tokens mask, seeds). Does not know: logits,
// devices. The arrays are reused from step to step. Engine thread only.
#pragma once

#include <cstdint>
#include <span>
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

// Whether the parameters of a row depend on the output's text, so that its token must be known before the next one is
// drawn.
bool reads_output(const SamplingParams& params);
// Whether the parameters of a row point to lists or change from token to token, so that every step brings them anew.
bool changes_each_step(const SamplingParams& params);
// Whether code of the caller is to be run between the forward pass and sampling.
bool has_hooks(const SamplingParams& params);

class SamplingBatch {
 public:
  void clear();
  // One more sequence samples; how many log-probabilities it wants.
  void count(const SamplingParams& params);
  // The row of a sequence that draws the token `output_index` of its output. `seed` is the sequence's; `counts` belongs
  // to it and outlives the step.
  void add(const Sequence& sequence, int32_t output_index, uint64_t seed, TokenCounts& counts);
  // Sets the rows' pointers and clears the masks; call once after the last add().
  void finish(int64_t vocab_size);
  // Of the row that add() made as number `row`, if its sequence has a constraint: to be filled before sampling.
  std::span<uint32_t> mask(size_t row);
  int64_t vocab_size() const { return vocab_size_; }
  // Of all rows that have one, in their order.
  std::span<const uint32_t> masks() const { return masks_; }

  const std::vector<SamplingRow>& rows() const { return rows_; }
  const std::vector<int32_t>& device_rows() const { return device_rows_; }  // the device's row of each; -1: none
  int32_t max_logprobs() const { return max_logprobs_; }                    // -1: no sequence asks for any

 private:
  struct Range {
    size_t begin, end;
  };
  std::vector<SamplingRow> rows_;
  std::vector<int32_t> device_rows_;
  std::vector<int32_t> banned_ids_;
  std::vector<Range> banned_ranges_;  // one a row, into banned_ids_
  std::vector<TokenBias> biases_;
  std::vector<Range> bias_ranges_;
  std::vector<uint32_t> masks_;
  std::vector<int32_t> mask_indices_;  // one a row; -1: none
  int32_t num_masks_ = 0;
  int64_t vocab_size_ = 0;
  int32_t max_logprobs_ = -1;
};

}  // namespace quire
