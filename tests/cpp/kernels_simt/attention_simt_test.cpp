// Paged attention on the emulation: a query's output has the same bits as a decode step at its position, inside a
// prefill chunk of any size, among other sequences, with pages anywhere, with and without a plan made before, with and
// without room for states in the workspace. The cases themselves run in kernel_cases_simt_test.cpp.
#include <gtest/gtest.h>

#include <algorithm>

#include "cuda/attention/attention.h"
#include "cuda/cuda_kernels.h"
#include "kernels/cases/attention_cases.h"
#include "simt/orders.h"
#include "support/sanitizers.h"

namespace quire::cuda {
namespace {

// A piece [begin, end) of one history of tokens is a sequence of the launch, with the keys [0, end).
struct HistoryPiece {
  int32_t begin, end;
};

enum class Planning { before, in_launch, without_states };

KernelTable table_for(Planning planning) {
  KernelTable table = kernels();
  if (planning == Planning::before) return table;
  table.attention_plan_bytes = [](int64_t, int64_t, int32_t) -> size_t { return 0; };
  if (planning == Planning::without_states) {
    table.attention_workspace_bytes = [](int64_t tokens, int64_t seqs, int64_t, int32_t heads, int32_t, int) -> size_t {
      return attention_plan_bytes(tokens, seqs, heads);
    };
  }
  return table;
}

void fill_row(cases::Buffer& buffer, int64_t row, int64_t stride, int64_t used, int32_t position, uint64_t seed) {
  cases::Random random(seed + static_cast<uint64_t>(position));
  for (int64_t i = 0; i < used; ++i) buffer.set(row * stride + i, random.uniform(-2.0, 2.0));
}

// Bits of the rows of all pieces, in order.
std::vector<std::vector<uint8_t>> attend(cases::AttentionSpec spec, const std::vector<HistoryPiece>& pieces,
                                         uint64_t seed, Planning planning) {
  spec.seqs.clear();
  for (const HistoryPiece& piece : pieces) spec.seqs.push_back({piece.end - piece.begin, piece.end});
  const auto fill_inputs = [&](cases::Buffer& queries, int64_t q_stride, cases::Buffer& kv, int64_t kv_stride) {
    int64_t token = 0, key = 0;
    for (const HistoryPiece& piece : pieces) {
      for (int32_t at = piece.begin; at < piece.end; ++at) {
        fill_row(queries, token++, q_stride, q_stride - 4, at, 1000);
      }
      for (int32_t at = 0; at < piece.end; ++at) fill_row(kv, key++, kv_stride, kv_stride, at, 900000);
    }
  };
  const KernelTable table = table_for(planning);
  cases::AttentionCase attention(spec, table, Stream{}, seed, fill_inputs);
  attention.reset();
  attention.run(table, Stream{});
  EXPECT_EQ(attention.check(), "");
  std::vector<std::vector<uint8_t>> rows;
  const size_t element = dtype_bytes(spec.dtype);
  const size_t row_bytes = static_cast<size_t>(spec.num_heads * spec.head_dim) * element;
  const auto* at = static_cast<const uint8_t*>(attention.out().data());
  for (const HistoryPiece& piece : pieces) {
    for (int32_t i = piece.begin; i < piece.end; ++i, at += static_cast<size_t>(attention.row_stride()) * element) {
      rows.emplace_back(at, at + row_bytes);
    }
  }
  return rows;
}

// The whole history at once gives the bits that rows of all cuts must have.
void check_invariance(const cases::AttentionSpec& spec, int32_t length,
                      const std::vector<std::vector<HistoryPiece>>& cuts) {
  const auto expected = attend(spec, {{0, length}}, 1, Planning::before);
  uint64_t seed = 2;
  for (const auto& pieces : cuts) {
    for (const Planning planning : {Planning::before, Planning::in_launch, Planning::without_states}) {
      const auto got = attend(spec, pieces, ++seed, planning);
      size_t row = 0;
      for (const HistoryPiece& piece : pieces) {
        for (int32_t at = piece.begin; at < piece.end; ++at, ++row) {
          ASSERT_EQ(got[row], expected[static_cast<size_t>(at)])
              << "position " << at << " of [" << piece.begin << ", " << piece.end << ") among " << pieces.size()
              << ", planning " << static_cast<int>(planning);
        }
      }
    }
  }
}

std::vector<HistoryPiece> chunks(int32_t length, int32_t size) {
  std::vector<HistoryPiece> pieces;
  for (int32_t begin = 0; begin < length; begin += size) pieces.push_back({begin, std::min(length, begin + size)});
  return pieces;
}

TEST(AttentionSimt, ChunksOfEverySize) {
  for (const int32_t head_dim : {64, 80}) {
    cases::AttentionSpec spec = {
        .dtype = DType::bf16, .num_heads = 6, .num_kv_heads = 2, .head_dim = head_dim, .seqs = {}};
    check_invariance(spec, 75, {chunks(75, 1), chunks(75, 5), chunks(75, 6), chunks(75, 16), chunks(75, 40)});
  }
}

TEST(AttentionSimt, ChunksWithOptions) {
  cases::AttentionSpec spec = {.dtype = DType::f16, .num_heads = 4, .num_kv_heads = 1, .head_dim = 64, .seqs = {}};
  spec.window = 37;
  spec.has_sinks = true;
  check_invariance(spec, 100, {chunks(100, 3), chunks(100, 33)});
  spec.window = 0;
  spec.has_alibi = true;
  spec.softcap = 3.0f;
  check_invariance(spec, 70, {chunks(70, 1), chunks(70, 33)});
  spec.relative_reach = 11;
  check_invariance(spec, 70, {chunks(70, 1), chunks(70, 33)});
}

TEST(AttentionSimt, SplitsOfLongContexts) {
  if (kSanitized) GTEST_SKIP() << "too long under a sanitizer; LaunchesOfOnePlan shares tiles too";
  cases::AttentionSpec spec = {.dtype = DType::bf16, .num_heads = 2, .num_kv_heads = 1, .head_dim = 64, .seqs = {}};
  const std::vector<std::vector<HistoryPiece>> cuts = {
      {{1099, 1100}},                                                             // shared by all blocks
      {{0, 500}, {500, 600}, {600, 1100}},                                        // tall tiles
      {{1099, 1100}, {300, 301}, {255, 256}, {256, 257}, {1023, 1026}, {0, 1}}};  // decode, lengths mixed
  check_invariance(spec, 1100, cuts);
  spec.window = 600;
  check_invariance(spec, 1100, cuts);
}

TEST(AttentionSimt, PlainKernelChunksAndSplits) {
  cases::AttentionSpec spec = {.dtype = DType::f32, .num_heads = 2, .num_kv_heads = 1, .head_dim = 20, .seqs = {}};
  check_invariance(spec, 300, {{{299, 300}, {0, 7}}, chunks(300, 100)});
}

// A plan serves all layers: a launch leaves it as it was.
TEST(AttentionSimt, LaunchesOfOnePlan) {
  simt::in_every_order([] {
    KernelTable table = table_for(Planning::before);
    table.paged_attention = [](const PagedAttentionParams& p, Stream stream) {
      paged_attention(p, stream);
      const size_t element = dtype_bytes(p.dtype);
      for (int64_t t = 0; t < p.num_tokens; ++t) {
        std::memset(static_cast<uint8_t*>(p.out) + static_cast<size_t>(t * p.out_stride) * element, 0xff,
                    static_cast<size_t>(p.num_heads * p.kv.head_dim) * element);
      }
      paged_attention(p, stream);
    };
    cases::AttentionCase attention({.dtype = DType::bf16,
                                    .num_heads = 4,
                                    .num_kv_heads = 2,
                                    .head_dim = 64,
                                    .seqs = {{1, 900}, {3, 20}, {0, 0}, {1, 600}}},
                                   table, Stream{});
    attention.reset();
    attention.run(table, Stream{});
    EXPECT_EQ(attention.check(), "");
  });
}

}  // namespace
}  // namespace quire::cuda
