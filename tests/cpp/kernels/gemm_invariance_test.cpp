// A row of a product has the same bits whatever m is, wherever the row stands and however many threads work.
#include <gtest/gtest.h>

#include "base/threads.h"
#include "kernels/cases/gemm_cases.h"
#include "kernels/isas.h"

namespace quire {
namespace {

struct Problem {
  DType dtype;
  int64_t n, k;
  bool gated;
};

class GemmInvariance : public testing::TestWithParam<const KernelTable*> {
 protected:
  static constexpr int64_t kMaxRows = 40;

  // Multiplies rows [first, first + m) of `a`; the result starts at row 0 of the returned buffer.
  cases::Buffer multiply(const Problem& problem, cases::Buffer& a, const PackedWeight& weight, int64_t first, int64_t m,
                         ThreadPool& pool) {
    cases::Buffer out(DType::f32, m * problem.n);
    GemmParams p;
    p.a = a.as<uint8_t>() + static_cast<size_t>(first * problem.k) * dtype_bytes(problem.dtype);
    p.a_stride = problem.k;
    p.m = m;
    p.weight = weight;
    p.activation = Activation::gelu;
    p.out = out.data();
    p.out_stride = problem.n;
    GetParam()->gemm(p, Stream{&pool});
    return out;
  }

  void check(const Problem& problem) {
    const int64_t rows = problem.gated ? 2 * problem.n : problem.n;
    cases::Random random(5);
    cases::Buffer a(problem.dtype, kMaxRows * problem.k), source(problem.dtype, rows * problem.k);
    a.fill_uniform(random, 1.0);
    source.fill_uniform(random, 1.0);
    cases::Buffer packed(DType::u8, static_cast<int64_t>(GetParam()->packed_weight_bytes(rows, problem.k, problem.dtype,
                                                                                         problem.gated)));
    const PackedWeight weight = {packed.data(), problem.dtype, problem.gated, rows, problem.k};
    ThreadPool one(1), two(2), three(3);
    for (const PackPart part : {PackPart::whole, PackPart::gate, PackPart::up}) {
      if ((part == PackPart::whole) == problem.gated) continue;
      PackWeightParams p;
      p.source = source.as<uint8_t>() +
                 static_cast<size_t>(part == PackPart::up ? problem.n * problem.k : 0) * dtype_bytes(problem.dtype);
      p.source_dtype = problem.dtype;
      p.rows = problem.n;
      p.cols = p.row_stride = problem.k;
      p.part = part;
      p.weight = weight;
      GetParam()->pack_weight(p, Stream{&two});
    }
    const cases::Buffer alone = multiply(problem, a, weight, 0, kMaxRows, one);
    const auto row_bytes = static_cast<size_t>(problem.n) * sizeof(float);
    for (int64_t m = 1; m <= kMaxRows; ++m) {
      for (ThreadPool* pool : {&one, &two, &three}) {
        const int64_t first = (m * 7) % (kMaxRows - m + 1);
        const cases::Buffer out = multiply(problem, a, weight, first, m, *pool);
        const auto* expected = static_cast<const uint8_t*>(alone.data()) + static_cast<size_t>(first) * row_bytes;
        ASSERT_EQ(std::memcmp(out.data(), expected, static_cast<size_t>(m) * row_bytes), 0)
            << dtype_name(problem.dtype) << " m " << m << " first " << first << " threads " << pool->num_threads();
      }
    }
  }
};

TEST_P(GemmInvariance, RowsHaveTheSameBits) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    check({dtype, 37, 19, false});
    check({dtype, 300, 257, false});
    check({dtype, 85, 64, true});
    check({dtype, 1536, 576, false});  // large enough that the threads really share it
  }
}

INSTANTIATE_TEST_SUITE_P(, GemmInvariance, testing::ValuesIn(runnable_tables()), table_name);

}  // namespace
}  // namespace quire
