// Launches the product for many tokens. Which products these are is gemm.cu's choice.
#include "cuda/gemm/large_gemm.h"

#include "base/check.h"
#include "cuda/gemm/large_gemm.cuh"
#include "cuda/gemm/weight_layout.h"

namespace quire::cuda {

size_t large_gemm_shared_bytes(int64_t num_splits) {
  return num_splits > 1 ? sizeof(LargeGemmSplitShared) : sizeof(LargeGemmShared);
}

void large_gemm(const GemmParams& g, Stream stream) {
  LargeGemmArgs args = {};
  args.gemm = gemm_args(g);
  const DType dtype = g.weight.dtype;
  QUIRE_CHECK(args.gemm.a_aligned && (dtype == DType::bf16 || dtype == DType::f16), dtype_name(dtype));
  args.packed_rows = static_cast<int32_t>(packed_rows(g.weight));
  args.strips = static_cast<int32_t>(ceil_div(rows_in_use(g.weight), kLargeRows));
  args.token_blocks = static_cast<int32_t>(ceil_div(g.m, kLargeTokens));
  args.weight_bytes_apart = LargeLoader::kRowsApart * int64_t{2} * args.gemm.padded_cols;
  args.a_bytes_apart = LargeLoader::kRowsApart * int64_t{2} * g.a_stride;
  const int64_t blocks = int64_t{args.strips} * args.token_blocks;
  QUIRE_CHECK(blocks < INT32_MAX, "m ", g.m, ", rows ", g.weight.rows);
  const simt::LaunchConfig config{.grid = dim3(static_cast<uint32_t>(blocks)),
                                  .block = dim3(kLargeThreads),
                                  .shared_bytes = large_gemm_shared_bytes(args.gemm.num_splits),
                                  .stream = stream,
                                  .pdl = true};
  if (dtype == DType::bf16) {
    simt::launch<large_gemm_kernel<__nv_bfloat16>>(config, args);
  } else {
    simt::launch<large_gemm_kernel<__half>>(config, args);
  }
}

}  // namespace quire::cuda
