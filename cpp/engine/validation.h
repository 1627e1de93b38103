// Checks at the border: what a request asks for, before any work is done. Throws InvalidArgument with vLLM's messages.
#pragma once

#include <span>

#include "quire/types.h"

namespace quire {

// The search keeps the candidates of every step; more beams than this are a mistake.
constexpr int32_t kMaxBeamWidth = 1024;

// Ranges that hold for every model.
void validate_sampling_params(const SamplingParams& params);

void validate_beam_search_params(const BeamSearchParams& params);

// What the model limits: the prompt's length and ids, the ids and counts in the parameters.
struct ModelLimits {
  int64_t vocab_size = 0;
  int64_t max_model_len = 0;
  bool has_vocabulary = false;
};
void validate_request(std::span<const int32_t> prompt, const SamplingParams& params, const ModelLimits& limits);
void validate_request(std::span<const int32_t> prompt, const BeamSearchParams& params, const ModelLimits& limits);

}  // namespace quire
