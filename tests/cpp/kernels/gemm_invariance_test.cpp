// A row of a product has the same bits whatever m is, wherever the row stands and however many threads work.
#include <gtest/gtest.h>

#include <optional>

#include "base/threads.h"
#include "kernels/cases/gemm_cases.h"
#include "kernels/isas.h"

namespace quire {
namespace {

struct Problem {
  DType dtype;
  int64_t n, k;
  bool gated;
  bool int8 = false;  // the weight's

  DType weight_dtype() const { return int8 ? DType::i8 : dtype; }
};

constexpr int64_t kMaxRows = 40;

// Activations and a packed weight.
class Operands {
 public:
  Operands(const Problem& problem, const KernelTable& table)
      : problem_(problem), table_(table), a_(problem.dtype, kMaxRows * problem.k) {
    const int64_t rows = problem.gated ? 2 * problem.n : problem.n;
    cases::Random random(5);
    cases::Buffer source(problem.dtype, rows * problem.k);
    a_.fill_uniform(random, 1.0);
    source.fill_uniform(random, 1.0);
    packed_ = cases::Buffer(DType::u8, static_cast<int64_t>(table.packed_weight_bytes(
                                           rows, problem.k, problem.weight_dtype(), problem.gated)));
    weight_ = {packed_.data(), problem.weight_dtype(), problem.gated, rows, problem.k};
    ThreadPool two(2);
    for (const PackPart part : {PackPart::whole, PackPart::gate, PackPart::up}) {
      if ((part == PackPart::whole) == problem.gated) continue;
      PackWeightParams p;
      p.source = source.as<uint8_t>() +
                 static_cast<size_t>(part == PackPart::up ? problem.n * problem.k : 0) * dtype_bytes(problem.dtype);
      p.source_dtype = problem.dtype;
      p.rows = problem.n;
      p.cols = p.row_stride = problem.k;
      p.part = part;
      p.weight = weight_;
      table.pack_weight(p, Stream{&two});
    }
  }

  cases::Buffer& a() { return a_; }

  // Multiplies rows [first, first + m) of a; the result starts at row 0 of the returned buffer.
  cases::Buffer multiply(int64_t first, int64_t m, ThreadPool& pool, Activation activation = Activation::gelu) {
    cases::Buffer out(DType::f32, m * problem_.n);
    cases::Buffer int8_rows(DType::u8, problem_.int8 ? static_cast<int64_t>(table_.int8_rows_bytes(m, problem_.k)) : 0);
    GemmParams p;
    p.a = a_.as<uint8_t>() + static_cast<size_t>(first * problem_.k) * dtype_bytes(problem_.dtype);
    p.a_stride = problem_.k;
    p.m = m;
    p.weight = weight_;
    p.activation = activation;
    p.out = out.data();
    p.out_stride = problem_.n;
    p.int8_a_dtype = problem_.dtype;
    p.int8_rows = problem_.int8 ? int8_rows.data() : nullptr;
    table_.gemm(p, Stream{&pool});
    return out;
  }

 private:
  Problem problem_;
  const KernelTable& table_;
  cases::Buffer a_, packed_;
  PackedWeight weight_;
};

class GemmInvariance : public testing::TestWithParam<const KernelTable*> {
 protected:
  void check(const Problem& problem) {
    Operands operands(problem, *GetParam());
    ThreadPool one(1), two(2), three(3);
    const cases::Buffer alone = operands.multiply(0, kMaxRows, one);
    const auto row_bytes = static_cast<size_t>(problem.n) * sizeof(float);
    for (int64_t m = 1; m <= kMaxRows; ++m) {
      for (ThreadPool* pool : {&one, &two, &three}) {
        const int64_t first = (m * 7) % (kMaxRows - m + 1);
        const cases::Buffer out = operands.multiply(first, m, *pool);
        const auto* expected = static_cast<const uint8_t*>(alone.data()) + static_cast<size_t>(first) * row_bytes;
        ASSERT_EQ(std::memcmp(out.data(), expected, static_cast<size_t>(m) * row_bytes), 0)
            << dtype_name(problem.dtype) << (problem.int8 ? " with int8" : "") << " m " << m << " first " << first
            << " threads " << pool->num_threads();
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
    check({dtype, 37, 19, false, true});
    check({dtype, 300, 257, false, true});
    check({dtype, 85, 64, true, true});
    check({dtype, 384, 1216, false, true});  // in pieces of k
  }
}

// Whole numbers are exact, and what is done with them in float is the same everywhere that multiplies and adds at once.
TEST(Int8Gemm, EveryInstructionSetWithFusedSumsHasTheSameBits) {
  for (const Problem& problem :
       {Problem{DType::bf16, 85, 700, true, true}, Problem{DType::f32, 300, 257, false, true}}) {
    std::optional<cases::Buffer> expected;
    for (const KernelTable* table : runnable_tables()) {
      if (table == cpu::portable_kernels()) continue;
      ThreadPool one(1);
      cases::Buffer out = Operands(problem, *table).multiply(0, kMaxRows, one, Activation::none);
      EXPECT_TRUE(!expected.has_value() || out.same_bits(*expected)) << table->name;
      expected = std::move(out);
    }
  }
}

// A row with an infinity or a NaN has no result, a row of zeros has zeros, and their neighbours notice nothing.
TEST_P(GemmInvariance, Int8RowsThatAreNotFiniteStayAlone) {
  for (const int64_t m : {3, 20}) {
    const Problem problem = {DType::bf16, 70, 300, false, true};
    Operands operands(problem, *GetParam());
    ThreadPool one(1);
    const cases::Buffer before = operands.multiply(0, m, one, Activation::none);
    operands.a().set(0 * problem.k + 290, std::numeric_limits<double>::infinity());
    operands.a().set(1 * problem.k + 5, std::nan(""));
    for (int64_t i = 0; i < problem.k; ++i) operands.a().set(2 * problem.k + i, 0.0);
    const cases::Buffer after = operands.multiply(0, m, one, Activation::none);
    for (int64_t i = 0; i < m * problem.n; ++i) {
      const int64_t row = i / problem.n;
      if (row < 2) {
        EXPECT_TRUE(std::isnan(after.get(i))) << i;
      } else {
        EXPECT_EQ(after.get(i), row == 2 ? 0.0 : before.get(i)) << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, GemmInvariance, testing::ValuesIn(runnable_tables()), table_name);

}  // namespace
}  // namespace quire
