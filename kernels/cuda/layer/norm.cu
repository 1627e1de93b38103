// The launcher of norm; see norm.cuh.
#include "cuda/layer/norm.cuh"

#include "base/check.h"
#include "cuda/layer/layer.h"

namespace quire::cuda {
namespace {

// Whether all rows can be accessed four elements at a time: their starts, their length, the weight and the bias.
bool rows_are_wide(const NormParams& p) {
  const size_t out_bytes = 4 * dtype_bytes(p.out_dtype);
  return p.dim % 4 == 0 && p.x_stride % 4 == 0 && p.out_stride % 4 == 0 && is_aligned(p.x, 16) &&
         is_aligned(p.out, out_bytes) && is_aligned(p.weight, 16) && is_aligned(p.bias, 16);
}

template <typename Out>
void launch_norm(const NormArgs& args, Stream stream) {
  const NormParams& p = args.params;
  if (p.dim <= kNormWarpMaxDim) {
    const auto grid = static_cast<unsigned>((p.rows + kNormWarpRows - 1) / kNormWarpRows);
    simt::launch<norm_kernel<Out, 32>>(
        {.grid = dim3(grid), .block = dim3(32 * kNormWarpRows), .stream = stream, .pdl = true}, args);
    return;
  }
  simt::launch<norm_kernel<Out, kNormBlockThreads>>({.grid = dim3(static_cast<unsigned>(p.rows)),
                                                     .block = dim3(kNormBlockThreads),
                                                     .shared_bytes = sizeof(NormShared),
                                                     .stream = stream,
                                                     .pdl = true},
                                                    args);
}

}  // namespace

void norm(const NormParams& p, Stream stream) {
  QUIRE_CHECK(p.dim > 0 && p.dim <= int64_t{1} << 24, "dim ", p.dim);
  QUIRE_CHECK(p.rows >= 0 && p.rows <= INT32_MAX, "rows ", p.rows);
  QUIRE_CHECK(!p.accumulate || (p.out_dtype == DType::f32 && p.kind != NormKind::none));
  QUIRE_CHECK(p.kind != NormKind::none || (p.weight == nullptr && p.bias == nullptr));
  QUIRE_CHECK(p.out != p.x || (p.out_dtype == DType::f32 && p.row_ids == nullptr && p.out_stride == p.x_stride),
              "in place, a row must be its own source");
  if (p.rows == 0) return;
  const NormArgs args{p, rows_are_wide(p)};
  switch (p.out_dtype) {
    case DType::f32:
      return launch_norm<float>(args, stream);
    case DType::bf16:
      return launch_norm<__nv_bfloat16>(args, stream);
    case DType::f16:
      return launch_norm<__half>(args, stream);
    default:
      throw NotSupported(str_cat("norm to ", dtype_name(p.out_dtype)));
  }
}

}  // namespace quire::cuda
