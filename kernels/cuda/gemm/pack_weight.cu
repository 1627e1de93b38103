// Sizes of packed weights and the launch of the packing kernel.
#include "base/check.h"
#include "cuda/gemm/gemm.h"
#include "cuda/gemm/pack_weight.cuh"
#include "cuda/gemm/weight_layout.h"

namespace quire::cuda {
namespace {

constexpr int64_t kMaxGridY = 65535;

void check_dtype(DType dtype) {
  if (dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16) return;
  throw NotSupported(str_cat("packing weights of ", dtype_name(dtype), " on CUDA; use bfloat16, float16 or float32"));
}

}  // namespace

size_t packed_weight_bytes(int64_t rows, int64_t cols, DType dtype, bool gated) {
  PackedWeight weight;
  weight.gated = gated;
  weight.rows = rows;
  const int64_t total_rows = padded_outputs(weight) * (gated ? 2 : 1);
  return static_cast<size_t>(total_rows * padded_cols(cols)) * dtype_bytes(dtype);
}

void pack_weight(const PackWeightParams& p, Stream stream) {
  const int64_t half_rows = num_outputs(p.weight);
  QUIRE_CHECK((p.part == PackPart::whole) != p.weight.gated, "a gated weight is packed as gate and up");
  QUIRE_CHECK(!p.weight.gated || p.weight.rows % 2 == 0, "rows ", p.weight.rows);
  QUIRE_CHECK(p.cols == p.weight.cols, p.cols, " != ", p.weight.cols);
  QUIRE_CHECK(p.row_begin >= 0 && p.rows >= 0 && p.row_begin + p.rows <= half_rows, p.row_begin, " + ", p.rows, " > ",
              half_rows);
  check_dtype(p.source_dtype);
  check_dtype(p.weight.dtype);
  PackArgs args = {};
  args.row_stride = p.row_stride;
  args.col_stride = p.col_stride;
  args.cols = p.cols;
  args.padded_cols = padded_cols(p.cols);
  args.source_dtype = p.source_dtype;
  args.dtype = p.weight.dtype;
  args.part = p.part;
  args.packed = p.weight.data;
  const bool holds_last = p.row_begin + p.rows == half_rows;
  const int64_t filled_end = holds_last ? padded_outputs(p.weight) : p.row_begin + p.rows;
  constexpr int64_t kRowsALaunch = kMaxGridY * kPackTile;
  for (int64_t begin = p.row_begin; begin < filled_end; begin += kRowsALaunch) {
    const int64_t skipped = begin - p.row_begin;
    args.source = static_cast<const uint8_t*>(p.source) +
                  skipped * p.row_stride * static_cast<int64_t>(dtype_bytes(p.source_dtype));
    args.row_begin = begin;
    args.rows = greater(0, p.rows - skipped);
    args.filled_rows = lesser(kRowsALaunch, filled_end - begin);
    simt::launch<pack_weight_kernel>(
        simt::LaunchConfig{.grid = dim3(static_cast<uint32_t>(ceil_div(args.padded_cols, kPackTile)),
                                        static_cast<uint32_t>(ceil_div(args.filled_rows, kPackTile))),
                           .block = dim3(kPackTile, kPackThreadRows),
                           .shared_bytes = sizeof(PackShared),
                           .stream = stream,
                           .pdl = false},
        args);
  }
}

}  // namespace quire::cuda
