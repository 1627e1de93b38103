// Products of many rows through cuBLASLt, for callers that give up batch invariance.
#pragma once

#include <cstddef>
#include <cstdint>

#include "params/gemm.h"
#include "params/stream.h"

namespace quire::cuda {

// False, and nothing is launched, where there is no library, it has no algorithm for this weight without split-K, the
// activations are not aligned, or the workspace is too small. A call of the library that fails is a DeviceError.
bool library_gemm(const GemmParams& params, Stream stream);

// The counters, which no library touches, its scratch and a product of up to 64 MB.
size_t library_workspace_bytes(int64_t rows);
// Less is not used.
size_t least_library_workspace_bytes(int64_t rows);

}  // namespace quire::cuda
