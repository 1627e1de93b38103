// From logits to token ids: one row of logits a sequence that samples in this step.
//
// Order on float32 logits: raw logprobs are taken; mask; allowed ids; banned ids (bad words); logit bias; min_tokens
// mask; repetition, frequency, presence penalties; greedy argmax (lowest id among equals), or temperature, min_p, top_k
// (ties at the k-th value stay), top_p, draw. The draw is Gumbel-max (argmax of logit + noise) with Philox noise keyed
// by (seed, output_index, token id): see philox.h. Logprobs: of the logits as they came, or as they were drawn from.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quire {

struct TokenCount {
  int32_t token_id = 0;
  int32_t output_count = 0;  // occurrences in the output; 0: the token is in the prompt only
};

struct TokenBias {
  int32_t token_id = 0;
  float bias = 0.0f;
};

// What is reported as "logprobs": the logits as they came, or those that were drawn from (after the edits, the
// temperature and the filters; -infinity for what cannot be drawn), as they are or after the logarithm of the softmax.
enum class LogprobsMode : uint8_t { raw_logprobs, raw_logits, processed_logprobs, processed_logits };
constexpr bool is_processed(LogprobsMode mode) { return mode >= LogprobsMode::processed_logprobs; }
constexpr bool is_logits(LogprobsMode mode) {
  return mode == LogprobsMode::raw_logits || mode == LogprobsMode::processed_logits;
}

// What one row asks for. Pointers are into host or device memory of the step and may be null when their count is 0.
struct SamplingRow {
  float temperature = 1.0f;  // < 1e-5: greedy
  int32_t top_k = 0;         // <= 0: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float frequency_penalty = 0.0f;
  float presence_penalty = 0.0f;
  int32_t forced_token = -1;  // >= 0: nothing is chosen, this is the token; for the logprobs of a given one
  uint64_t seed = 0;
  uint32_t output_index = 0;  // index of the token about to be drawn in the output
  int32_t num_logprobs = -1;  // -1: none wanted; 0: the sampled token's; k: also the k most likely

  const int32_t* allowed_ids = nullptr;  // only these may be sampled
  int32_t num_allowed_ids = 0;
  const int32_t* banned_ids = nullptr;  // bad words whose last token comes now, and the min_tokens mask
  int32_t num_banned_ids = 0;
  const TokenBias* biases = nullptr;
  int32_t num_biases = 0;
  const TokenCount* counts = nullptr;  // every distinct token of prompt and output; needed with penalties only
  int32_t num_counts = 0;
  // [(vocab_size + 31) / 32]; bit i % 32 of word i / 32: token i may be sampled. Null: all may. Where other parameters
  // leave none of these a logit above -infinity, one of these is sampled all the same.
  const uint32_t* allowed_mask = nullptr;
};

struct SamplingParamsBlock {
  float* logits = nullptr;  // [num_rows, logits_stride]; overwritten
  int64_t logits_stride = 0;
  int32_t vocab_size = 0;
  int32_t num_rows = 0;
  const SamplingRow* rows = nullptr;  // [num_rows]

  int32_t* token_ids = nullptr;  // out [num_rows]
  LogprobsMode logprobs_mode = LogprobsMode::raw_logprobs;
  // Out, for rows with num_logprobs >= 0; entry 0 is the sampled token, then the num_logprobs most likely, best first.
  int32_t logprobs_stride = 0;      // entries a row: at least 1 + the largest num_logprobs
  int32_t* logprob_ids = nullptr;   // [num_rows, logprobs_stride]
  float* logprobs = nullptr;        // [num_rows, logprobs_stride]
  int32_t* sampled_rank = nullptr;  // [num_rows] 1-based: how many tokens have a logprob >= the sampled one's
  void* workspace = nullptr;        // sampling_workspace_bytes(...)
  size_t workspace_bytes = 0;
};

}  // namespace quire
