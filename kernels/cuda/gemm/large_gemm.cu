// Launches the product for many tokens. Which products these are is gemm.cu's choice.
#include "cuda/gemm/large_gemm.h"

#include "base/check.h"
#include "cuda/gemm/large_gemm.cuh"
#include "cuda/gemm/weight_layout.h"

namespace quire::cuda {

size_t large_gemm_shared_bytes(int64_t num_splits) {
  return num_splits > 1 ? sizeof(LargeGemmSplitShared) : sizeof(LargeGemmShared);
}

void launch_large_gemm(const GemmArgs& args, DType dtype, int64_t rows, int64_t packed_rows, Stream stream) {
  QUIRE_CHECK(args.a_aligned && (dtype == DType::bf16 || dtype == DType::f16), dtype_name(dtype));
  LargeGemmArgs large = {};
  large.gemm = args;
  large.packed_rows = static_cast<int32_t>(packed_rows);
  large.strips = static_cast<int32_t>(ceil_div(rows, kLargeRows));
  large.token_blocks = static_cast<int32_t>(ceil_div(args.m, kLargeTokens));
  large.weight_bytes_apart = LargeLoader::kRowsApart * int64_t{2} * args.padded_cols;
  large.a_bytes_apart = LargeLoader::kRowsApart * int64_t{2} * args.a_stride;
  const int64_t blocks = int64_t{large.strips} * large.token_blocks;
  QUIRE_CHECK(blocks < INT32_MAX, "m ", args.m, ", rows ", rows);
  const simt::LaunchConfig config{.grid = dim3(static_cast<uint32_t>(blocks)),
                                  .block = dim3(kLargeThreads),
                                  .shared_bytes = large_gemm_shared_bytes(args.num_splits),
                                  .stream = stream,
                                  .pdl = true};
  if (dtype == DType::bf16) {
    simt::launch<large_gemm_kernel<__nv_bfloat16>>(config, large);
  } else {
    simt::launch<large_gemm_kernel<__half>>(config, large);
  }
}

}  // namespace quire::cuda
