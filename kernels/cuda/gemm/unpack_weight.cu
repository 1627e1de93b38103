// The launch of the unpacking kernel.
#include "base/check.h"
#include "cuda/gemm/gemm.h"
#include "cuda/gemm/unpack_weight.cuh"
#include "cuda/gemm/weight_layout.h"

namespace quire::cuda {

void unpack_weight(const UnpackWeightParams& p, Stream stream) {
  constexpr int64_t kMaxGridY = 65535;
  QUIRE_CHECK((p.part == PackPart::whole) != p.weight.gated, "a gated weight is read as gate and up");
  QUIRE_CHECK(p.row_begin >= 0 && p.rows >= 0 && p.row_begin + p.rows <= num_outputs(p.weight), p.row_begin, " + ",
              p.rows, " > ", num_outputs(p.weight));
  const DType dtype = p.weight.dtype;
  QUIRE_CHECK(dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16, dtype_name(dtype));
  UnpackArgs args = {};
  args.packed = p.weight.data;
  args.cols = p.weight.cols;
  args.padded_cols = padded_cols(p.weight.cols);
  args.dtype = dtype;
  args.part = p.part;
  if (args.cols <= 0) return;
  for (int64_t begin = 0; begin < p.rows; begin += kMaxGridY) {
    args.out = p.out + begin * args.cols;
    args.row_begin = p.row_begin + begin;
    simt::launch<unpack_weight_kernel>(
        simt::LaunchConfig{.grid = dim3(static_cast<uint32_t>(ceil_div(args.cols, kUnpackThreads)),
                                        static_cast<uint32_t>(lesser(kMaxGridY, p.rows - begin))),
                           .block = dim3(kUnpackThreads),
                           .shared_bytes = 0,
                           .stream = stream,
                           .pdl = false},
        args);
  }
}

}  // namespace quire::cuda
