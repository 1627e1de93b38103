// What the gemm kernels are told: GemmParams with 32-bit shapes, and how the launcher has cut the work.
#pragma once

#include <cstdint>

#include "params/gemm.h"

namespace quire::cuda {

struct GemmArgs {
  const void* a;
  int64_t a_stride;
  const void* weight;
  const float* bias;
  void* out;
  int64_t out_stride;
  float* partials;     // [num_splits][strips][tiles][4][32], or null: a block sums all its ranges itself
  uint32_t* counters;  // [strips], zero between launches
  float scale;
  float softcap;
  int32_t m;
  int32_t outputs;  // columns of out
  int32_t cols;     // k
  int32_t padded_cols;
  int32_t num_chunks;
  int32_t num_splits;
  Activation activation;
  bool gated;
  bool accumulate;
  bool rounds;     // out has the element type of the weight
  bool a_aligned;  // rows of a start at 16 bytes and hold whole groups of eight
};

GemmArgs gemm_args(const GemmParams& params);

inline bool starts_at(const void* address, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

}  // namespace quire::cuda
