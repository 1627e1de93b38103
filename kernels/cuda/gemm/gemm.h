// Launchers of the matrix product and of the packing of its weights.
#pragma once

#include <cstddef>
#include <cstdint>

#include "params/gemm.h"
#include "params/stream.h"

namespace quire::cuda {

size_t packed_weight_bytes(int64_t rows, int64_t cols, DType dtype, bool gated);
// A launch like any other, without programmatic dependent launch: what follows it in the stream sees the weight.
void pack_weight(const PackWeightParams& params, Stream stream);
void unpack_weight(const UnpackWeightParams& params, Stream stream);

// With GemmParams::workspace the ranges of k of a narrow weight run in blocks of their own; without, one after the
// other in one block. The bits are the same.
void gemm(const GemmParams& params, Stream stream);

// Enough for any row count; 0 where a workspace would not be used. The bytes must be zero before the first launch; each
// launch leaves the part that must be so zero. Launches of one stream may share it.
size_t gemm_workspace_bytes(int64_t rows, int64_t cols, DType dtype);

// The same for products with batch_invariant = false, which may go to cuBLASLt (cublaslt.h); at least as many. The same
// bytes must be zero.
size_t gemm_library_workspace_bytes(int64_t rows, int64_t cols, DType dtype);

}  // namespace quire::cuda
