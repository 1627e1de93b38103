// The small kernels of a step on the emulation, beyond their cases: a row's bits depend on the row alone, alignment
// changes no bits of a norm, a decode loop needs nothing from the host, and contracts are refused before anything runs.
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "cuda/cuda_kernels.h"
#include "kernels/cases/kernel_case.h"

namespace quire {
namespace {

using cases::Buffer;
using cases::Random;

constexpr DType kDTypes[] = {DType::f32, DType::f16, DType::bf16};

bool same_elements(const Buffer& a, int64_t at_a, const Buffer& b, int64_t at_b, int64_t count, DType dtype) {
  const size_t bytes = dtype_bytes(dtype);
  return std::memcmp(static_cast<const uint8_t*>(a.data()) + static_cast<size_t>(at_a) * bytes,
                     static_cast<const uint8_t*>(b.data()) + static_cast<size_t>(at_b) * bytes,
                     static_cast<size_t>(count) * bytes) == 0;
}

NormParams norm_params(Buffer& x, int64_t x_stride, int64_t rows, int64_t dim, Buffer& weight, Buffer& out, DType dtype,
                       int64_t out_stride) {
  NormParams p;
  p.x = x.as<float>();
  p.x_stride = x_stride;
  p.rows = rows;
  p.dim = dim;
  p.weight = weight.as<float>();
  p.eps = 1e-5f;
  p.out = out.data();
  p.out_dtype = dtype;
  p.out_stride = out_stride;
  return p;
}

TEST(SimtNorm, ARowsBitsAreItsOwnAtEveryAlignment) {
  for (const DType dtype : kDTypes) {
    for (const NormKind kind : {NormKind::rms, NormKind::layer}) {
      for (const int64_t dim : {60, 1024, 1100, 12300}) {
        SCOPED_TRACE(str_cat(dtype_name(dtype), " ", dim));
        constexpr int64_t kRows = 6;
        Random random(static_cast<uint64_t>(dim));
        Buffer x(DType::f32, kRows * dim), weight(DType::f32, dim), together(dtype, kRows * dim);
        x.fill_uniform(random, 2.0);
        weight.fill_uniform(random, 1.0);
        NormParams p = norm_params(x, dim, kRows, dim, weight, together, dtype, dim);
        p.kind = kind;
        cuda::kernels().norm(p, Stream{});
        // Row 4 alone, among rows of NaN, where no address is wide: by the distance of rows, and by the first address.
        const int32_t row = 4, third = 2;
        for (const int64_t first : {0, 1}) {
          const int64_t stride = first == 0 ? dim + 1 : dim;
          Buffer moved(DType::f32, 4 * stride), alone(dtype, dim);
          std::memcpy(moved.as<float>() + third * stride + first, x.as<float>() + row * dim,
                      static_cast<size_t>(dim) * sizeof(float));
          NormParams q = norm_params(moved, stride, 1, dim, weight, alone, dtype, dim);
          q.kind = kind;
          q.x = moved.as<float>() + first;
          q.row_ids = &third;
          cuda::kernels().norm(q, Stream{});
          EXPECT_TRUE(same_elements(together, row * dim, alone, 0, dim, dtype));
        }
      }
    }
  }
}

TEST(SimtNorm, InPlaceGivesTheSameBits) {
  for (const int64_t dim : {90, 9000}) {
    Random random(5);
    Buffer x(DType::f32, 3 * dim), weight(DType::f32, dim), out(DType::f32, 3 * dim);
    x.fill_uniform(random, 2.0);
    weight.fill_uniform(random, 1.0);
    cuda::kernels().norm(norm_params(x, dim, 3, dim, weight, out, DType::f32, dim), Stream{});
    cuda::kernels().norm(norm_params(x, dim, 3, dim, weight, x, DType::f32, dim), Stream{});
    EXPECT_TRUE(out.same_bits(x)) << dim;
  }
}

// A small model's heads, and the tokens of a launch as a choice among prepared ones.
struct Rope {
  static constexpr int32_t kHeads = 3, kKvHeads = 2, kBlockSize = 16, kSlots = 64, kPositions = 40;
  static constexpr int64_t kTokens = 9;

  Rope(DType dtype_, int32_t head_dim_, bool interleaved_)
      : dtype(dtype_), head_dim(head_dim_), interleaved(interleaved_) {
    Random random(9);
    original = Buffer(dtype, kTokens * stride());
    original.fill_uniform(random, 2.0);
    for (Buffer* each : {&q_norm, &k_norm}) {
      *each = Buffer(DType::f32, head_dim);
      each->fill_uniform(random, 1.0);
    }
    cos_sin = Buffer(DType::f32, kPositions * head_dim);
    cos_sin.fill_uniform(random, 1.0);
  }
  int64_t stride() const { return int64_t{kHeads + 2 * kKvHeads} * head_dim; }

  // Runs the tokens given, each at the position and slot that belong to it.
  void run(const std::vector<int32_t>& tokens) {
    qkv = Buffer(dtype, static_cast<int64_t>(tokens.size()) * stride());
    k = Buffer(dtype, int64_t{kSlots} * kKvHeads * head_dim);
    v = Buffer(dtype, int64_t{kSlots} * kKvHeads * head_dim);
    std::vector<int32_t> positions, slots;
    const size_t row_bytes = static_cast<size_t>(stride()) * dtype_bytes(dtype);
    for (size_t i = 0; i < tokens.size(); ++i) {
      std::memcpy(qkv.as<uint8_t>() + i * row_bytes,
                  original.as<uint8_t>() + static_cast<size_t>(tokens[i]) * row_bytes, row_bytes);
      positions.push_back(tokens[i] * 4);
      slots.push_back(tokens[i] * 7);
    }
    RopeKvWriteParams p;
    p.qkv = qkv.data();
    p.dtype = dtype;
    p.qkv_stride = stride();
    p.num_tokens = static_cast<int64_t>(tokens.size());
    p.num_heads = kHeads;
    p.q_norm = q_norm.as<float>();
    p.k_norm = k_norm.as<float>();
    p.norm_eps = 1e-6f;
    p.positions = positions.data();
    p.cos_sin = cos_sin.as<float>();
    p.rotary_dim = head_dim;
    p.interleaved = interleaved;
    p.slot_mapping = slots.data();
    p.kv = {k.data(), v.data(), dtype, kBlockSize, kKvHeads, head_dim};
    cuda::kernels().rope_kv_write(p, Stream{});
  }

  DType dtype;
  int32_t head_dim;
  bool interleaved;
  Buffer original, q_norm, k_norm, cos_sin, qkv, k, v;
};

TEST(SimtRope, ATokensBitsAreItsOwn) {
  for (const DType dtype : kDTypes) {
    for (const int32_t head_dim : {64, 22, 256}) {
      for (const bool interleaved : {false, true}) {
        SCOPED_TRACE(str_cat(dtype_name(dtype), " ", head_dim, interleaved ? " interleaved" : ""));
        Rope together(dtype, head_dim, interleaved), alone(dtype, head_dim, interleaved);
        std::vector<int32_t> all(Rope::kTokens);
        std::iota(all.begin(), all.end(), 0);
        together.run(all);
        for (const int32_t token : {0, 5}) {
          alone.run({token});
          EXPECT_TRUE(same_elements(together.qkv, token * together.stride(), alone.qkv, 0, together.stride(), dtype));
          const int32_t slot = token * 7;
          for (int32_t h = 0; h < Rope::kKvHeads; ++h) {
            const int64_t at =
                ((int64_t{slot / Rope::kBlockSize} * Rope::kKvHeads + h) * Rope::kBlockSize + slot % Rope::kBlockSize) *
                head_dim;
            EXPECT_TRUE(same_elements(together.k, at, alone.k, at, head_dim, dtype));
            EXPECT_TRUE(same_elements(together.v, at, alone.v, at, head_dim, dtype));
            EXPECT_FALSE(alone.k.is_untouched(at));
          }
        }
      }
    }
  }
}

// Twenty steps of three sequences, one of which leaves after ten: the host changes the list of rows and nothing else,
// and what is "sampled" goes from step to step on the device.
TEST(SimtPrepareBatch, ADecodeLoopRunsOnTheDeviceAlone) {
  constexpr int32_t kMaxSeqs = 4, kStride = 5, kBlockSize = 16;
  std::vector<int32_t> last = {100, 101, 102, 103}, computed = {30, 0, 15, 7}, tables(4 * kStride);
  std::iota(tables.begin(), tables.end(), 50);
  std::vector<int32_t> num_prompt = {29, 1, 3, 7}, seq_rows = {2, 0, 3, -1}, expected = computed, expected_last = last;
  std::vector<SamplingRow> row_sampling(4), sampling(kMaxSeqs);
  int32_t num_seqs = 3;
  std::vector<int32_t> token_ids(kMaxSeqs), positions(kMaxSeqs), slots(kMaxSeqs), kv_lens(kMaxSeqs);
  std::vector<int32_t> query_start(kMaxSeqs + 1), block_tables(kMaxSeqs * kStride, -7);
  std::vector<int32_t> sample_token_rows(kMaxSeqs), sample_rows(kMaxSeqs), sampled(kMaxSeqs);
  const DeviceRows rows = {last.data(),   computed.data(), num_prompt.data(),
                           tables.data(), kStride,         row_sampling.data()};
  const PrepareBatchParams p = {.rows = rows,
                                .block_size = kBlockSize,
                                .num_seqs = &num_seqs,
                                .seq_rows = seq_rows.data(),
                                .max_seqs = kMaxSeqs,
                                .token_ids = token_ids.data(),
                                .positions = positions.data(),
                                .slot_mapping = slots.data(),
                                .kv_lens = kv_lens.data(),
                                .query_start = query_start.data(),
                                .block_tables = block_tables.data(),
                                .block_table_stride = kStride,
                                .sample_token_rows = sample_token_rows.data(),
                                .sample_rows = sample_rows.data(),
                                .sampling = sampling.data()};
  for (int step = 0; step < 20; ++step) {
    if (step == 10) {
      seq_rows = {2, 3, -1, -1};
      num_seqs = 2;
    }
    cuda::kernels().prepare_batch(p, Stream{});
    for (int32_t s = 0; s < kMaxSeqs; ++s) sampled[static_cast<size_t>(s)] = 1000 * step + s;
    cuda::kernels().store_sampled({rows, sample_rows.data(), sampled.data(), kMaxSeqs}, Stream{});
    for (int32_t s = 0; s < num_seqs; ++s) {
      const auto row = static_cast<size_t>(seq_rows[static_cast<size_t>(s)]);
      const int32_t position = expected[row]++;
      const int32_t page = tables[row * kStride + static_cast<size_t>(position / kBlockSize)];
      const auto at = static_cast<size_t>(s);
      EXPECT_EQ(token_ids[at], std::exchange(expected_last[row], 1000 * step + s));
      EXPECT_EQ(positions[at], position);
      EXPECT_EQ(slots[at], page * kBlockSize + position % kBlockSize);
      EXPECT_EQ(kv_lens[at], position + 1);
      EXPECT_EQ(sampling[at].output_index, static_cast<uint32_t>(position + 1 - num_prompt[row]));
      EXPECT_EQ(block_tables[at * kStride + static_cast<size_t>(position / kBlockSize)], page);
    }
    EXPECT_EQ(query_start.back(), num_seqs);
    EXPECT_EQ(slots.back(), -1);
  }
  EXPECT_EQ(computed, expected);
  EXPECT_EQ(last, expected_last);
}

TEST(SimtLayer, NothingToDoIsNothingDone) {
  Buffer x(DType::f32, 16), weight(DType::f32, 16);
  cuda::kernels().norm(norm_params(x, 16, 0, 16, weight, x, DType::f32, 16), Stream{});
  RopeKvWriteParams rope;
  rope.num_heads = 1;
  rope.kv = {nullptr, nullptr, DType::f32, 16, 1, 8};
  cuda::kernels().rope_kv_write(rope, Stream{});
  cuda::kernels().copy_blocks({}, Stream{});
  cuda::kernels().update_rows({}, Stream{});
  cuda::kernels().store_sampled({}, Stream{});
  EXPECT_TRUE(x.is_untouched(0));
}

TEST(SimtLayer, BrokenContractsAreRefused) {
  const KernelTable& table = cuda::kernels();
  Buffer x(DType::f32, 64), weight(DType::f32, 16);
  const NormParams good = norm_params(x, 16, 4, 16, weight, x, DType::f32, 16);
  const int32_t rows[] = {1, 0, 3, 2};
  NormParams p = good;
  p.row_ids = rows;  // would read rows that others have overwritten
  EXPECT_THROW(table.norm(p, Stream{}), InternalError);
  p = good;
  p.out_dtype = DType::i64;
  EXPECT_THROW(table.norm(p, Stream{}), std::exception);
  RopeKvWriteParams rope;
  rope.num_heads = 1;
  rope.kv = {nullptr, nullptr, DType::bf16, 16, 1, 8};
  EXPECT_THROW(table.rope_kv_write(rope, Stream{}), NotSupported);
  rope.dtype = DType::bf16;
  rope.kv.block_size = 24;
  EXPECT_THROW(table.rope_kv_write(rope, Stream{}), InternalError);
  EXPECT_TRUE(x.is_untouched(0));
}

}  // namespace
}  // namespace quire
