// The launcher of reduce_rows; see reduce_rows.cuh.
#include "cuda/comm/reduce_rows.h"

#include "base/check.h"
#include "cuda/comm/reduce_rows.cuh"

namespace quire::cuda {
namespace {

bool rows_are_wide(const ReduceRowsParams& p) {
  bool is_wide = p.dim % 4 == 0 && p.partial_stride % 4 == 0 && p.out_stride % 4 == 0 && is_aligned(p.base, 16);
  for (int32_t i = 0; i < p.num_partials; ++i) is_wide = is_wide && is_aligned(p.partials[i], 16);
  for (int32_t i = 0; i < p.num_outs; ++i) is_wide = is_wide && is_aligned(p.outs[i], 16);
  if (!p.has_norm) return is_wide;
  const size_t normed_bytes = 4 * dtype_bytes(p.normed_dtype);
  is_wide = is_wide && p.normed_stride % 4 == 0 && is_aligned(p.norm_weight, 16) && is_aligned(p.norm_bias, 16);
  for (int32_t i = 0; i < p.num_outs; ++i) is_wide = is_wide && is_aligned(p.normed[i], normed_bytes);
  return is_wide;
}

template <typename Out>
void launch_reduce_rows(const ReduceRowsArgs& args, Stream stream) {
  const ReduceRowsParams& p = args.params;
  if (p.dim <= kNormWarpMaxDim) {
    const auto grid = static_cast<unsigned>((p.rows + kNormWarpRows - 1) / kNormWarpRows);
    simt::launch<reduce_rows_kernel<Out, 32>>(
        {.grid = dim3(grid), .block = dim3(32 * kNormWarpRows), .stream = stream, .pdl = true}, args);
    return;
  }
  simt::launch<reduce_rows_kernel<Out, kNormBlockThreads>>({.grid = dim3(static_cast<unsigned>(p.rows)),
                                                            .block = dim3(kNormBlockThreads),
                                                            .shared_bytes = sizeof(NormShared),
                                                            .stream = stream,
                                                            .pdl = true},
                                                           args);
}

}  // namespace

void reduce_rows(const ReduceRowsParams& p, Stream stream) {
  QUIRE_CHECK(p.num_partials >= 1 && p.num_partials <= kMaxRanks, "partials of ", p.num_partials, " ranks");
  QUIRE_CHECK(p.num_outs >= 1 && p.num_outs <= kMaxRanks, p.num_outs, " outputs");
  QUIRE_CHECK(p.dim > 0 && p.dim <= int64_t{1} << 24, "dim ", p.dim);
  QUIRE_CHECK(p.rows >= 0 && p.rows <= INT32_MAX, "rows ", p.rows);
  if (p.rows == 0) return;
  const ReduceRowsArgs args{p, rows_are_wide(p)};
  switch (p.has_norm ? p.normed_dtype : DType::f32) {
    case DType::f32:
      return launch_reduce_rows<float>(args, stream);
    case DType::bf16:
      return launch_reduce_rows<__nv_bfloat16>(args, stream);
    case DType::f16:
      return launch_reduce_rows<__half>(args, stream);
    default:
      throw NotSupported(str_cat("norm to ", dtype_name(p.normed_dtype)));
  }
}

}  // namespace quire::cuda
