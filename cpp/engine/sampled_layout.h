// Where the results of a launch of the sampling kernel lie: the same on the device and in a host buffer. Pure.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/placer.h"

namespace quire {

struct SampledLayout {
  int32_t *token_ids = nullptr, *ranks = nullptr, *logprob_ids = nullptr;
  float* logprobs = nullptr;
};

// `stride` log-probabilities a row. Returns the bytes; only counts where there is no base.
inline size_t lay_out(int64_t num_rows, int64_t stride, std::byte* base, SampledLayout& layout) {
  Placer placer(base);
  layout.token_ids = placer.take<int32_t>(num_rows);
  layout.ranks = placer.take<int32_t>(num_rows);
  layout.logprob_ids = placer.take<int32_t>(num_rows * stride);
  layout.logprobs = placer.take<float>(num_rows * stride);
  return placer.used();
}

}  // namespace quire
