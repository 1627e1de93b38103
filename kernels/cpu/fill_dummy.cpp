// Dummy values. Compiled for the baseline machine, which has no fused multiply-add to contract the sum into.
#include "base/check.h"
#include "cpu/common_kernels.h"
#include "cpu/parallel.h"

namespace quire::cpu {

void fill_dummy(const FillDummyParams& p, Stream stream) {
  QUIRE_CHECK(p.count >= 0 && p.index_begin >= 0, p.count, " values from index ", p.index_begin);
  for_each_range(stream, p.count, static_cast<double>(p.count), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) p.out[i] = dummy_unit(p.seed, p.index_begin + i) * kDummyScale + p.added;
  });
}

}  // namespace quire::cpu
