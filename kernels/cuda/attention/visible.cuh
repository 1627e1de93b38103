// Which keys a query sees beyond itself. Shared by the plan and by all kernels that mask, which must agree.
#pragma once

#include "cuda/simt/simt.h"

namespace quire::cuda {

// One past the last key that the query at `position` sees.
__device__ __forceinline__ int end_of_keys(bool causal, int window, int position, int kv_len) {
  if (causal) return position + 1;
  return window > 0 ? min(kv_len, position + window) : kv_len;
}

}  // namespace quire::cuda
