// Dummy values into device memory, so that a model of random weights needs no copy from the host.
//
// Mapping: a thread an element, blocks of 256 over the whole range; neighbours write neighbouring floats. Limit: the
// two 64-bit products of the hash, about 40 integer instructions an element.
#include "base/check.h"
#include "cuda/layer/layer.h"
#include "cuda/simt/simt.h"

namespace quire::cuda {

constexpr int kFillThreads = 256;
constexpr int64_t kMaxFillBlocks = int64_t{1} << 30;

__global__ void __launch_bounds__(kFillThreads) fill_dummy_kernel(const __grid_constant__ FillDummyParams p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kFillThreads + threadIdx.x;
  if (i >= p.count) return;
  // Intrinsics: a product that is contracted with the sum has other bits.
  p.out[i] = __fadd_rn(__fmul_rn(dummy_unit(p.seed, p.index_begin + i), kDummyScale), p.added);
}

void fill_dummy(const FillDummyParams& p, Stream stream) {
  const int64_t num_blocks = (p.count + kFillThreads - 1) / kFillThreads;
  QUIRE_CHECK(p.count >= 0 && p.index_begin >= 0 && num_blocks <= kMaxFillBlocks, p.count, " values from index ",
              p.index_begin);
  if (num_blocks == 0) return;
  simt::launch<fill_dummy_kernel>(
      {.grid = dim3(static_cast<unsigned>(num_blocks)), .block = dim3(kFillThreads), .stream = stream, .pdl = false},
      p);
}

}  // namespace quire::cuda
