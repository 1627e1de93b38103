// A query's output has the same bits as a decode step at its position, inside a prefill chunk of any size, among other
// sequences, with pages anywhere and any number of threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/threads.h"
#include "kernels/cases/attention_cases.h"
#include "kernels/isas.h"

namespace quire {
namespace {

class AttentionInvariance : public testing::TestWithParam<const KernelTable*> {
 protected:
  // A batch of pieces [begin, end) of one history of `length` tokens. Each piece is its own sequence in the launch,
  // with the keys [0, end); queries, keys and values of a position are the same in all.
  struct Piece {
    int32_t begin, end;
  };
  double magnitude_ = 2.0;    // of queries, keys and values
  bool share_pages_ = false;  // a piece takes the pages that the longest one before it has of its keys

  std::vector<uint8_t> row_bits(const cases::AttentionCase& done, const cases::AttentionSpec& spec, int64_t token) {
    const size_t row_bytes = static_cast<size_t>(spec.num_heads * spec.head_dim) * dtype_bytes(spec.dtype);
    const auto* begin = static_cast<const uint8_t*>(done.out().data()) +
                        static_cast<size_t>(token * done.row_stride()) * dtype_bytes(spec.dtype);
    return {begin, begin + row_bytes};
  }

  void fill(cases::Buffer& buffer, int64_t row, int64_t row_elements, int64_t used, uint64_t seed) {
    cases::Random random(seed);
    for (int64_t i = 0; i < used; ++i) buffer.set(row * row_elements + i, random.uniform(-magnitude_, magnitude_));
  }

  // Bits of the rows of each piece, in order.
  std::vector<std::vector<uint8_t>> attend(cases::AttentionSpec spec, const std::vector<Piece>& pieces, uint64_t seed,
                                           ThreadPool& pool) {
    spec.seqs.clear();
    for (const Piece& piece : pieces) {
      const auto longest = std::max_element(spec.seqs.begin(), spec.seqs.end(),
                                            [](const auto& a, const auto& b) { return a.kv_len < b.kv_len; });
      const bool shares = share_pages_ && !spec.seqs.empty();
      const auto with = shares ? static_cast<int32_t>(longest - spec.seqs.begin()) : -1;
      const int32_t shared = shares ? std::min(longest->kv_len, piece.end) : 0;
      spec.seqs.push_back({piece.end - piece.begin, piece.end, with, shared});
    }
    const Stream stream{&pool};
    const auto fill_inputs = [&](cases::Buffer& queries, int64_t q_stride, cases::Buffer& kv, int64_t kv_stride) {
      int64_t token = 0, key = 0;
      for (const Piece& piece : pieces) {
        for (int32_t position = piece.begin; position < piece.end; ++position) {
          fill(queries, token++, q_stride, q_stride - 4, 1000 + static_cast<uint64_t>(position));
        }
        for (int32_t position = 0; position < piece.end; ++position) {
          fill(kv, key++, kv_stride, kv_stride, 900000 + static_cast<uint64_t>(position));
        }
      }
    };
    cases::AttentionCase attention(spec, *GetParam(), stream, seed, fill_inputs);
    attention.reset();
    attention.run(*GetParam(), stream);
    std::vector<std::vector<uint8_t>> rows;
    int64_t num_tokens = 0;
    for (const Piece& piece : pieces) num_tokens += piece.end - piece.begin;
    for (int64_t t = 0; t < num_tokens; ++t) rows.push_back(row_bits(attention, spec, t));
    return rows;
  }

  void check(const cases::AttentionSpec& spec, int32_t length, const std::vector<int32_t>& chunk_sizes) {
    ThreadPool one(1), two(2), three(3);
    const auto expected = attend(spec, {{0, length}}, 1, one);
    uint64_t seed = 2;
    for (const int32_t chunk : chunk_sizes) {
      std::vector<Piece> pieces;
      for (int32_t begin = 0; begin < length; begin += chunk)
        pieces.push_back({begin, std::min(length, begin + chunk)});
      for (ThreadPool* pool : {&one, &two, &three}) {
        const auto got = attend(spec, pieces, ++seed, *pool);  // all pieces in one launch, pages elsewhere
        ASSERT_EQ(got.size(), expected.size());
        for (size_t row = 0; row < got.size(); ++row) {
          ASSERT_EQ(got[row], expected[row]) << dtype_name(spec.dtype) << " chunk " << chunk << " position " << row
                                             << " threads " << pool->num_threads();
        }
      }
    }
    for (ThreadPool* pool : {&one, &three}) {  // a decode step alone; long ones are split over threads
      const auto got = attend(spec, {{length - 1, length}}, ++seed, *pool);
      ASSERT_EQ(got[0], expected.back()) << dtype_name(spec.dtype) << " alone, threads " << pool->num_threads();
    }
  }
};

TEST_P(AttentionInvariance, ChunksOfEverySize) {
  const std::vector<int32_t> sizes = {1, 2, 3, 5, 7, 8, 11, 16, 31, 33, 64, 70, 100};
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    cases::AttentionSpec spec = {.dtype = dtype, .num_heads = 6, .num_kv_heads = 2, .head_dim = 40, .seqs = {}};
    check(spec, 150, sizes);
    spec.window = 37;
    spec.has_sinks = true;
    check(spec, 150, {1, 3, 16, 50});
    spec.window = 0;
    spec.has_alibi = true;
    spec.softcap = 3.0f;
    spec.num_kv_heads = 6;
    check(spec, 150, {1, 3, 16, 50});
    spec.relative_reach = 21;
    check(spec, 150, {1, 3, 16, 50});
  }
}

// Zero times infinity is NaN: what a query does not see must not reach it, not even as a product.
TEST_P(AttentionInvariance, InfiniteValuesOfLaterKeys) {
  constexpr int32_t kLength = 90, kFirstInfinite = 70;
  ThreadPool pool(2);
  const Stream stream{&pool};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const cases::AttentionSpec spec = {
        .dtype = dtype, .num_heads = 4, .num_kv_heads = 2, .head_dim = 40, .seqs = {{kLength, kLength}}};
    std::vector<std::vector<uint8_t>> rows[2];
    for (const bool is_infinite : {false, true}) {
      cases::AttentionCase attention(spec, *GetParam(), stream, 1,
                                     [&](auto& queries, int64_t q_stride, auto& kv, int64_t kv_stride) {
                                       for (int32_t t = 0; t < kLength; ++t) {
                                         fill(queries, t, q_stride, q_stride - 4, 1000 + static_cast<uint64_t>(t));
                                         fill(kv, t, kv_stride, kv_stride, 2000 + static_cast<uint64_t>(t));
                                         if (!is_infinite || t < kFirstInfinite) continue;
                                         for (int64_t i = kv_stride - 2 * spec.head_dim; i < kv_stride; ++i)
                                           kv.set(t * kv_stride + i, INFINITY);
                                       }
                                     });
      attention.reset();
      attention.run(*GetParam(), stream);
      for (int64_t t = 0; t < kLength; ++t) rows[is_infinite].push_back(row_bits(attention, spec, t));
    }
    for (size_t t = 0; t < kLength; ++t) {
      EXPECT_EQ(rows[0][t] == rows[1][t], t < kFirstInfinite) << dtype_name(dtype) << " position " << t;
    }
  }
}

// Tiles take denormal numbers for zeros; whatever computes few rows does as they do.
TEST_P(AttentionInvariance, ProductsAndValuesThatAreDenormal) {
  cases::AttentionSpec spec = {.dtype = DType::bf16, .num_heads = 6, .num_kv_heads = 2, .head_dim = 72, .seqs = {}};
  for (const double magnitude : {1e-19, 2e-38, 1e-39}) {
    magnitude_ = magnitude;
    check(spec, 100, {1, 2, 7});
  }
}

TEST_P(AttentionInvariance, SplitsOfLongContexts) {
  cases::AttentionSpec spec = {.dtype = DType::bf16, .num_heads = 2, .num_kv_heads = 1, .head_dim = 16, .seqs = {}};
  check(spec, 2200, {1100, 700});
  spec.window = 1300;
  check(spec, 2200, {1100, 700});
}

// Sequences with the same first pages are computed together as far as those go.
TEST_P(AttentionInvariance, SharedPages) {
  share_pages_ = true;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    cases::AttentionSpec spec = {.dtype = dtype, .num_heads = 6, .num_kv_heads = 2, .head_dim = 40, .seqs = {}};
    check(spec, 200, {1, 3, 50});
    spec.has_alibi = spec.has_sinks = true;
    spec.softcap = 3.0f;
    spec.relative_reach = 21;
    check(spec, 200, {4});
  }
  cases::AttentionSpec spec = {.dtype = DType::bf16, .num_heads = 2, .num_kv_heads = 1, .head_dim = 16, .seqs = {}};
  check(spec, 1300, {8});
}

INSTANTIATE_TEST_SUITE_P(, AttentionInvariance, testing::ValuesIn(tables_with_own(&KernelTable::paged_attention)),
                         table_name);

}  // namespace
}  // namespace quire
