// GemmParams as the kernels of all launchers of this folder take them.
#include "cuda/gemm/gemm_args.h"

#include "cuda/gemm/weight_layout.h"

namespace quire::cuda {

GemmArgs gemm_args(const GemmParams& g) {
  const auto element_bytes = static_cast<int64_t>(dtype_bytes(g.weight.dtype));
  const int64_t group = 16 / element_bytes;
  GemmArgs args = {};
  args.a = g.a;
  args.a_stride = g.a_stride;
  args.weight = g.weight.data;
  args.bias = g.bias;
  args.out = g.out;
  args.out_stride = g.out_stride;
  args.scale = g.scale;
  args.softcap = g.softcap;
  args.m = static_cast<int32_t>(g.m);
  args.outputs = static_cast<int32_t>(num_outputs(g.weight));
  args.cols = static_cast<int32_t>(g.weight.cols);
  args.padded_cols = static_cast<int32_t>(padded_cols(g.weight.cols));
  args.num_chunks = static_cast<int32_t>(num_chunks(g.weight.cols));
  args.num_splits = static_cast<int32_t>(num_splits(g.weight.rows, g.weight.cols));
  args.activation = g.activation;
  args.gated = g.weight.gated;
  args.accumulate = g.accumulate;
  args.rounds = g.out_dtype != DType::f32;
  args.a_aligned = starts_at(g.a, 16) && g.a_stride % group == 0 && g.weight.cols % group == 0;
  return args;
}

}  // namespace quire::cuda
