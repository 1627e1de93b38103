// Checks at the border: what a request asks for, before any work is done. Throws InvalidArgument with vLLM's messages.
#pragma once

#include <span>

#include "quire/types.h"

namespace quire {

// Ranges that hold for every model.
void validate_sampling_params(const SamplingParams& params);

// What the model limits: the prompt's length and ids, the ids and counts in the parameters.
struct ModelLimits {
  int64_t vocab_size = 0;
  int64_t max_model_len = 0;
  bool has_vocabulary = false;
};
void validate_request(std::span<const int32_t> prompt, const SamplingParams& params, const ModelLimits& limits);

}  // namespace quire
