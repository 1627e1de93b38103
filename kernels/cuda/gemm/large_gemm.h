// The product for many tokens (large_gemm.cuh): what its launch is told, and what its tile is, for those that choose.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/gemm/gemm_args.h"
#include "params/stream.h"

namespace quire::cuda {

constexpr int kLargeRows = 128;
constexpr int kLargeTokens = 128;

struct LargeGemmArgs {
  GemmArgs gemm;
  int32_t packed_rows;  // in memory, padding included
  int32_t strips;
  int32_t token_blocks;
  int64_t weight_bytes_apart;  // of two rows that one thread copies
  int64_t a_bytes_apart;
};

// A product in so many ranges of k needs more shared memory than some GPUs have.
size_t large_gemm_shared_bytes(int64_t num_splits);

// 16-bit weights and aligned activations (GemmArgs::a_aligned) only; no workspace is used.
void large_gemm(const GemmParams& params, Stream stream);

}  // namespace quire::cuda
