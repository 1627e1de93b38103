// The launcher of sampling; see sampling.cu.
#pragma once

#include "params/sampling.h"
#include "params/stream.h"

namespace quire::cuda {

// Everything that SamplingParamsBlock points to, rows included, is in device memory. A row's num_logprobs beyond
// logprobs_stride - 1 is cut; with logprobs_stride 0 no row may ask for logprobs.
void sample(const SamplingParamsBlock& block, Stream stream);

size_t sampling_workspace_bytes(int64_t max_rows, int64_t vocab_size, int num_threads);

}  // namespace quire::cuda
