// The Hopper prefill attention, emulated: against a reference in double precision in three thread orders with the same
// bits in all of them, and the same bits for a row however its sequence is cut into chunks and whoever shares the
// batch.
//
// Slots past kv_lens and pages that nobody may read hold NaN; unused entries of block tables an id far outside.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "cuda/attention/attention.h"
#include "cuda/attention/kv_layout.h"
#include "cuda/attention/prefill_sm90.h"
#include "cuda/simt/engine.h"

namespace quire {
namespace {

struct Sequence {
  int num_queries, kv_len;
  uint64_t seed;  // of its keys, values and queries: the same sequence may appear in several batches
};

struct Spec {
  DType dtype = DType::bf16;
  int num_heads = 2, num_kv_heads = 1, head_dim = 64, block_size = 64;
  std::vector<Sequence> seqs;
  int window = 0;
  bool causal = true, has_sinks = false;
};

constexpr int32_t kUnusedBlock = 2147480000;
constexpr uint16_t kNan = 0xFFFF, kUntouched = 0x7ACE;

uint64_t mix(uint64_t x) {
  x = (x ^ x >> 33) * 0xff51afd7ed558ccdu;
  x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53u;
  return x ^ x >> 33;
}

class PrefillCase {
 public:
  explicit PrefillCase(const Spec& spec) : spec_(spec) {
    int num_blocks = 2, longest = 0;
    for (const Sequence& seq : spec.seqs) {
      query_start_.push_back(num_tokens_);
      kv_lens_.push_back(seq.kv_len);
      num_tokens_ += seq.num_queries;
      num_blocks += (seq.kv_len + spec.block_size - 1) / spec.block_size;
      longest = std::max(longest, seq.kv_len);
    }
    query_start_.push_back(num_tokens_);
    stride_ = spec.num_heads * spec.head_dim + 8;
    q_.assign(static_cast<size_t>(std::max(num_tokens_, 1) * stride_), kNan);
    out_ = q_;
    table_stride_ = longest / spec.block_size + 3;
    tables_.assign(spec.seqs.size() * static_cast<size_t>(table_stride_), kUnusedBlock);
    const auto elements = static_cast<size_t>(num_blocks * spec.num_kv_heads * spec.block_size * spec.head_dim);
    k_.assign(elements, kNan);
    v_.assign(elements, kNan);
    for (int h = 0; h < spec.num_heads; ++h) sinks_.push_back(1.5f * static_cast<float>(h % 3) - 1.0f);
    int next = num_blocks - 1;  // pages lie backwards
    for (size_t s = 0; s < spec.seqs.size(); ++s) next = fill_sequence(s, next);
  }

  // How a launch reaches the kernel: by its own name, or through paged_attention, which chooses.
  enum class Through { prefill, invariant_table, free_table };

  std::vector<uint16_t> run(Through through = Through::prefill) {
    std::fill(out_.begin(), out_.end(), kUntouched);
    PagedAttentionParams p;
    p.q = q_.data();
    p.q_stride = p.out_stride = stride_;
    p.dtype = spec_.dtype;
    p.num_heads = spec_.num_heads;
    p.kv = {k_.data(), v_.data(), spec_.dtype, spec_.block_size, spec_.num_kv_heads, spec_.head_dim};
    p.num_seqs = static_cast<int32_t>(spec_.seqs.size());
    p.query_start = query_start_.data();
    p.kv_lens = kv_lens_.data();
    p.block_tables = tables_.data();
    p.block_table_stride = table_stride_;
    p.scale = scale();
    p.window = spec_.window;
    p.sinks = spec_.has_sinks ? sinks_.data() : nullptr;
    p.causal = spec_.causal;
    p.out = out_.data();
    p.num_tokens = num_tokens_;
    EXPECT_TRUE(cuda::prefill_sm90_takes(p));
    if (through == Through::prefill) {
      cuda::prefill_sm90(p, Stream{});
      return out_;
    }
    std::vector<uint64_t> workspace(
        cuda::attention_workspace_bytes(num_tokens_, p.num_seqs, 512, p.num_heads, p.kv.head_dim, 1) / 8 + 8);
    p.max_kv_len = 512;
    p.workspace = workspace.data() + (64 - reinterpret_cast<uintptr_t>(workspace.data()) % 64) % 64 / 8;
    p.workspace_bytes = (workspace.size() - 8) * 8;
    p.batch_invariant = through == Through::invariant_table;
    cuda::paged_attention(p, Stream{});
    return out_;
  }

  std::string check() const {
    for (size_t s = 0; s < spec_.seqs.size(); ++s) {
      for (int i = 0; i < spec_.seqs[s].num_queries; ++i) {
        for (int h = 0; h < spec_.num_heads; ++h) {
          const std::string problem = check_row(s, i, h);
          if (!problem.empty()) return problem;
        }
        const int64_t gap = (query_start_[s] + i) * stride_ + spec_.num_heads * spec_.head_dim;
        for (int64_t j = gap; j < gap + 8; ++j) {
          if (out_[static_cast<size_t>(j)] != kUntouched) return "wrote between rows";
        }
      }
    }
    return "";
  }

  // The last `count` rows of a sequence.
  std::vector<uint16_t> rows_of(size_t seq, int count) const {
    const int64_t row = spec_.num_heads * spec_.head_dim, end = query_start_[seq + 1];
    std::vector<uint16_t> rows;
    for (int64_t t = end - count; t < end; ++t) {
      rows.insert(rows.end(), out_.begin() + t * stride_, out_.begin() + t * stride_ + row);
    }
    return rows;
  }

 private:
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(spec_.head_dim)); }
  double value(uint16_t bits) const {
    return spec_.dtype == DType::f16 ? double{f16_to_float(bits)} : double{bf16_to_float(bits)};
  }

  // Element d of row (kind, position, head) of a sequence, between -2 and 2.
  uint16_t element(const Sequence& seq, int kind, int position, int head, int d) const {
    const uint64_t at =
        ((static_cast<uint64_t>(position) * 64 + static_cast<uint64_t>(head)) * 4 + static_cast<uint64_t>(kind)) * 512 +
        static_cast<uint64_t>(d);
    const float x = static_cast<float>(mix(seq.seed * 0x9e3779b97f4a7c15u + at) >> 40) * 0x1p-22f - 2.0f;
    return spec_.dtype == DType::f16 ? float_to_f16(x) : float_to_bf16(x);
  }

  int fill_sequence(size_t s, int next_page) {
    const Sequence& seq = spec_.seqs[s];
    const int first_query = seq.kv_len - seq.num_queries;
    for (int i = 0; i < seq.num_queries; ++i) {
      for (int h = 0; h < spec_.num_heads; ++h) {
        for (int d = 0; d < spec_.head_dim; ++d) {
          q_[static_cast<size_t>((query_start_[s] + i) * stride_ + h * spec_.head_dim + d)] =
              element(seq, 0, first_query + i, h, d);
        }
      }
    }
    const int first_seen = spec_.window > 0 ? std::max(0, first_query - spec_.window + 1) : 0;
    for (int block = 0; block * spec_.block_size < seq.kv_len; ++block, --next_page) {
      if ((block + 1) * spec_.block_size <= first_seen) continue;  // given back
      tables_[s * static_cast<size_t>(table_stride_) + static_cast<size_t>(block)] = next_page;
      const int end = std::min(spec_.block_size, seq.kv_len - block * spec_.block_size);
      for (int t = 0; t < end; ++t) fill_key(seq, block * spec_.block_size + t, next_page, t);
    }
    return next_page;
  }

  void fill_key(const Sequence& seq, int position, int page, int token) {
    for (int h = 0; h < spec_.num_kv_heads; ++h) {
      const auto at =
          static_cast<size_t>(cuda::kv_offset(page, h, token, spec_.num_kv_heads, spec_.block_size, spec_.head_dim));
      for (int d = 0; d < spec_.head_dim; ++d) {
        k_[at + static_cast<size_t>(d)] = element(seq, 1, position, h, d);
        v_[at + static_cast<size_t>(d)] = element(seq, 2, position, h, d);
      }
    }
  }

  std::string check_row(size_t s, int i, int head) const {
    const Sequence& seq = spec_.seqs[s];
    const int position = seq.kv_len - seq.num_queries + i, kv_head = head / (spec_.num_heads / spec_.num_kv_heads);
    const int begin = spec_.window > 0 ? std::max(0, position - spec_.window + 1) : 0;
    const int end = spec_.causal ? position + 1 : seq.kv_len;
    std::vector<double> scores;
    double max = spec_.has_sinks ? double{sinks_[static_cast<size_t>(head)]} : -1e300;
    for (int j = begin; j < end; ++j) {
      double dot = 0.0;
      for (int d = 0; d < spec_.head_dim; ++d) {
        dot += value(element(seq, 0, position, head, d)) * value(element(seq, 1, j, kv_head, d));
      }
      scores.push_back(dot * double{scale()});
      max = std::max(max, scores.back());
    }
    double sum = spec_.has_sinks ? std::exp(double{sinks_[static_cast<size_t>(head)]} - max) : 0.0;
    std::vector<double> expected(static_cast<size_t>(spec_.head_dim)), magnitude = expected, squares = expected;
    for (int j = begin; j < end; ++j) {
      const double weight = std::exp(scores[static_cast<size_t>(j - begin)] - max);
      sum += weight;
      for (int d = 0; d < spec_.head_dim; ++d) {
        const double v = value(element(seq, 2, j, kv_head, d));
        expected[static_cast<size_t>(d)] += weight * v;
        magnitude[static_cast<size_t>(d)] += weight * std::abs(v);
        squares[static_cast<size_t>(d)] += weight * v * weight * v;
      }
    }
    // P and the output are rounded to the 16-bit type; the errors of P are independent of each other, so that one key
    // too many or too few still shows in a long row.
    const double unit = spec_.dtype == DType::f16 ? 0x1p-11 : 0x1p-8;
    for (int d = 0; d < spec_.head_dim; ++d) {
      const auto at = static_cast<size_t>((query_start_[s] + i) * stride_ + head * spec_.head_dim + d);
      const double want = expected[static_cast<size_t>(d)] / sum, got = value(out_[at]);
      const double of_weights =
          std::min(magnitude[static_cast<size_t>(d)], 4.0 * std::sqrt(squares[static_cast<size_t>(d)])) / sum;
      const double tolerance = unit * (of_weights + std::abs(want)) + 1e-5;
      if (!(std::abs(want - got) <= tolerance)) {
        return "sequence " + std::to_string(s) + " position " + std::to_string(position) + " head " +
               std::to_string(head) + " element " + std::to_string(d) + ": " + std::to_string(got) + ", expected " +
               std::to_string(want);
      }
    }
    return "";
  }

  Spec spec_;
  int num_tokens_ = 0, table_stride_ = 0;
  int64_t stride_ = 0;
  std::vector<int32_t> query_start_, kv_lens_, tables_;
  std::vector<uint16_t> q_, out_, k_, v_;
  std::vector<float> sinks_;
};

// Right in every order, with the same bits.
void check_spec(const Spec& spec) {
  SCOPED_TRACE("head_dim " + std::to_string(spec.head_dim) + " heads " + std::to_string(spec.num_heads) + "/" +
               std::to_string(spec.num_kv_heads) + " pages of " + std::to_string(spec.block_size) + " window " +
               std::to_string(spec.window));
  PrefillCase each(spec);
  std::vector<uint16_t> first;
  for (const simt::Order order : {simt::Order::forward, simt::Order::reverse, simt::Order::random}) {
    simt::set_order(order, 3);
    const std::vector<uint16_t> out = each.run();
    simt::set_order(simt::Order::forward);
    if (first.empty()) {
      ASSERT_EQ(each.check(), "");
      first = out;
    }
    ASSERT_TRUE(first == out) << "other bits in order " << static_cast<int>(order);
  }
}

// One token, edges of tiles of 64 rows, 80 and 128 keys and of pages, chunks with history, an empty chunk.
const std::vector<Sequence> kMixed = {{1, 1, 1}, {65, 65, 2}, {3, 130, 3}, {0, 40, 4}, {17, 97, 5}, {1, 81, 6}};

TEST(PrefillSm90, MixedBatches) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const int head_dim : {64, 128, 256}) {
      check_spec({.dtype = dtype, .num_heads = 4, .num_kv_heads = 2, .head_dim = head_dim, .seqs = kMixed});
    }
  }
}

TEST(PrefillSm90, PagesOfEverySize) {
  for (const int block_size : {16, 32, 48, 80, 128}) {
    check_spec({.head_dim = 64, .block_size = block_size, .seqs = {{40, 300, 1}, {129, 129, 2}}});
  }
  check_spec({.head_dim = 256, .block_size = 16, .seqs = {{20, 170, 1}}});
  check_spec({.head_dim = 128, .block_size = 128, .seqs = {{20, 257, 1}}});
}

TEST(PrefillSm90, LengthsAroundTiles) {
  for (const int length : {63, 64, 127, 128, 129, 255, 257}) {
    check_spec({.num_heads = 1, .num_kv_heads = 1, .head_dim = 64, .seqs = {{length, length, 1}}});
  }
}

TEST(PrefillSm90, GroupsOfAnySize) {
  check_spec({.num_heads = 1, .num_kv_heads = 1, .head_dim = 128, .seqs = {{200, 200, 1}}});
  check_spec({.num_heads = 7, .num_kv_heads = 1, .head_dim = 128, .seqs = {{30, 140, 1}, {2, 9, 2}}});
  check_spec({.num_heads = 10, .num_kv_heads = 2, .head_dim = 64, .seqs = {{41, 60, 1}}});
  check_spec({.num_heads = 64, .num_kv_heads = 1, .head_dim = 64, .seqs = {{5, 33, 1}}});
}

TEST(PrefillSm90, Options) {
  for (const int head_dim : {64, 256}) {
    const Spec base{.head_dim = head_dim, .block_size = 16, .seqs = {{1, 1, 1}, {70, 200, 2}, {30, 390, 3}}};
    for (const int window : {1, 20, 150}) {
      Spec spec = base;
      spec.window = window;
      check_spec(spec);
    }
    Spec spec = base;
    spec.causal = false;
    check_spec(spec);
    spec.has_sinks = true;
    check_spec(spec);
    spec.causal = true;
    spec.window = 100;
    check_spec(spec);
  }
}

TEST(PrefillSm90, BitsDoNotDependOnChunksOrBatch) {
  for (const int head_dim : {64, 128, 256}) {
    for (const int window : {0, 90}) {
      Spec spec{.num_heads = 6, .num_kv_heads = 2, .head_dim = head_dim, .seqs = {{170, 170, 9}}, .window = window};
      PrefillCase whole(spec);
      whole.run();
      const std::vector<uint16_t> all = whole.rows_of(0, 170);
      for (const int end : {1, 50, 129, 170}) {
        const int count = std::min(end, end == 170 ? 41 : 33);
        spec.seqs = {{13, 77, 1}, {count, end, 9}, {2, 200, 2}};
        PrefillCase chunk(spec);
        chunk.run();
        const std::vector<uint16_t> rows = chunk.rows_of(1, count);
        const auto row = static_cast<size_t>(6 * head_dim);
        ASSERT_TRUE(
            std::equal(rows.begin(), rows.end(), all.begin() + static_cast<std::ptrdiff_t>((end - count) * row)))
            << head_dim << " window " << window << " chunk ending at " << end;
      }
    }
  }
}

// paged_attention keeps to the kernel whose bits are those of decode steps, unless the caller gives that up.
TEST(PrefillSm90, IsChosenWhereInvarianceIsGivenUp) {
  const Spec spec{.num_heads = 4, .num_kv_heads = 2, .head_dim = 128, .seqs = {{40, 300, 1}, {1, 77, 2}}};
  PrefillCase each(spec);
  const std::vector<uint16_t> fast = each.run();
  EXPECT_EQ(each.run(PrefillCase::Through::free_table), fast);
  const std::vector<uint16_t> invariant = each.run(PrefillCase::Through::invariant_table);
  EXPECT_EQ(each.check(), "");
  EXPECT_NE(invariant, fast);
  Spec decode = spec;
  decode.seqs = {{1, 300, 1}, {1, 77, 2}};
  PrefillCase steps(decode);
  EXPECT_EQ(steps.run(PrefillCase::Through::free_table), steps.run(PrefillCase::Through::invariant_table));
}

TEST(PrefillSm90, LeavesTheRestToOthers) {
  PagedAttentionParams p;
  alignas(16) static uint16_t some[8];
  p.q = p.out = p.kv.k = p.kv.v = some;
  p.dtype = p.kv.dtype = DType::bf16;
  p.num_heads = p.kv.num_kv_heads = 1;
  p.kv.head_dim = 128;
  p.kv.block_size = 16;
  p.q_stride = p.out_stride = 128;
  p.scale = 1.0f;
  p.num_tokens = 1;
  EXPECT_TRUE(cuda::prefill_sm90_takes(p));
  const auto takes_with = [&p](auto change) {
    PagedAttentionParams other = p;
    change(other);
    return cuda::prefill_sm90_takes(other);
  };
  EXPECT_FALSE(takes_with([](auto& o) { o.kv.head_dim = 96; }));
  EXPECT_FALSE(takes_with([](auto& o) { o.dtype = o.kv.dtype = DType::f32; }));
  EXPECT_FALSE(takes_with([](auto& o) { o.softcap = 30.0f; }));
  EXPECT_FALSE(takes_with([](auto& o) { o.q_stride = 132; }));
  EXPECT_FALSE(takes_with([](auto& o) { o.num_heads = 65; }));
  const float slope = 0.5f;
  EXPECT_FALSE(takes_with([&](auto& o) { o.alibi_slopes = &slope; }));
  EXPECT_FALSE(takes_with([&](auto& o) { o.relative_bias = &slope; }));
}

}  // namespace
}  // namespace quire
