// The CUDA matrix product, its packing and the embedding gather, emulated: the case table and what it does not reach
// (aligned rows, a cut k with and without a workspace, the packed layout), each in three thread orders.
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <new>
#include <string_view>

#include "cuda/cuda_kernels.h"
#include "cuda/embedding/embedding.h"
#include "cuda/gemm/gemm.h"
#include "cuda/gemm/large_gemm.h"
#include "cuda/gemm/weight_layout.h"
#include "cuda/simt/engine.h"
#include "kernels/cases/gemm_cases.h"
#include "kernels/cases/layer_cases.h"
#include "support/sanitizers.h"

namespace quire {
namespace {

using cases::Buffer;

KernelTable table_of_this_family() {
  KernelTable table;
  table.name = "simt";
  table.packed_weight_bytes = cuda::packed_weight_bytes;
  table.pack_weight = cuda::pack_weight;
  table.gemm = cuda::gemm;
  table.embedding = cuda::embedding;
  return table;
}

// Calls run() once in each thread order.
template <typename Run>
void in_every_order(const Run& run) {
  for (const simt::Order order : {simt::Order::forward, simt::Order::reverse, simt::Order::random}) {
    simt::set_order(order, 7);
    run(static_cast<int>(order));
  }
  simt::set_order(simt::Order::forward);
}

std::vector<uint8_t> bytes_of(const Buffer& buffer) {
  const auto* begin = static_cast<const uint8_t*>(buffer.data());
  return {begin, begin + buffer.size_bytes()};
}

void run_cases(const std::vector<cases::CaseEntry>& entries, const KernelTable& table = table_of_this_family()) {
  for (const cases::CaseEntry& entry : entries) {
    if (entry.is_benchmark) continue;
    std::vector<uint8_t> forward;
    in_every_order([&](int order) {
      const auto kernel_case = entry.make(table, Stream{});
      kernel_case->reset();
      kernel_case->run(table, Stream{});
      ASSERT_EQ(kernel_case->check(), "") << entry.name << " order " << order;
      const std::vector<uint8_t> bits = bytes_of(*kernel_case->outputs().front());
      if (order == 0) forward = bits;
      ASSERT_EQ(bits, forward) << entry.name << " order " << order;
    });
  }
}

TEST(GemmSimt, CasesInEveryThreadOrder) {
  std::vector<cases::CaseEntry> entries;
  cases::add_gemm_cases(entries);
  run_cases(entries);
}

TEST(EmbeddingSimt, CasesInEveryThreadOrder) {
  std::vector<cases::CaseEntry> entries;
  cases::add_embedding_cases(entries);
  run_cases(entries);
}

// One weight and up to max_rows rows of activations, NaN between them.
class Product {
 public:
  Product(DType dtype, int64_t n, int64_t k, bool gated, int64_t a_stride, int64_t max_rows)
      : dtype_(dtype),
        n_(n),
        k_(k),
        a_stride_(a_stride),
        a_(dtype, max_rows * a_stride),
        source_(dtype, rows(gated) * k),
        packed_(DType::u8, static_cast<int64_t>(cuda::packed_weight_bytes(rows(gated), k, dtype, gated))),
        weight_{packed_.data(), dtype, gated, rows(gated), k} {
    cases::Random random(static_cast<uint64_t>(n * 31 + k));
    source_.fill_uniform(random, 4.0 / std::sqrt(static_cast<double>(k)));
    for (int64_t r = 0; r < max_rows; ++r) {
      for (int64_t i = 0; i < a_stride; ++i) a_.set(r * a_stride + i, i < k ? random.uniform(-1, 1) : std::nan(""));
    }
    for (const PackPart part : {PackPart::whole, PackPart::up, PackPart::gate}) {
      if ((part == PackPart::whole) == gated) continue;
      PackWeightParams p;
      p.source = source_.as<uint8_t>() + (part == PackPart::up ? n * k : 0) * element_bytes();
      p.source_dtype = dtype;
      p.rows = n;
      p.cols = p.row_stride = k;
      p.part = part;
      p.weight = weight_;
      cuda::pack_weight(p, Stream{});
    }
    std::memset(packed_.as<uint8_t>() + packed_.size_bytes(), 0xff, 64);  // NaN behind the weight: not to be read
  }

  // Rows [first, first + m), f32, rows of n.
  Buffer multiply(int64_t first, int64_t m, Buffer* workspace = nullptr,
                  void (*multiplier)(const GemmParams&, Stream) = cuda::gemm) {
    Buffer out(DType::f32, m * n_);
    GemmParams p;
    p.a = a_.as<uint8_t>() + first * a_stride_ * element_bytes();
    p.a_stride = a_stride_;
    p.m = m;
    p.weight = weight_;
    p.activation = Activation::gelu;
    p.out = out.data();
    p.out_stride = n_;
    if (workspace != nullptr) {
      p.workspace = workspace->data();
      p.workspace_bytes = workspace->size_bytes();
    }
    multiplier(p, Stream{});
    EXPECT_TRUE(out.guards_hold());
    return out;
  }

  double reference(int64_t row, int64_t column) const {
    const auto linear = [&](int64_t source_row) {
      double sum = 0.0;
      for (int64_t i = 0; i < k_; ++i) sum += a_.get(row * a_stride_ + i) * source_.get(source_row * k_ + i);
      return sum;
    };
    const double x = cases::activation_reference(Activation::gelu, linear(column));
    return weight_.gated ? x * linear(n_ + column) : x;
  }

  const PackedWeight& weight() const { return weight_; }
  void move_weight(void* to) { weight_.data = std::memcpy(to, packed_.data(), packed_.size_bytes()); }

 private:
  int64_t rows(bool gated) const { return gated ? 2 * n_ : n_; }
  int64_t element_bytes() const { return static_cast<int64_t>(dtype_bytes(dtype_)); }

  DType dtype_;
  int64_t n_, k_, a_stride_;
  Buffer a_, source_, packed_;
  PackedWeight weight_;
};

void expect_rows(const Buffer& got, const Buffer& all, int64_t first, int64_t m, int64_t n, const std::string& what) {
  ASSERT_EQ(std::memcmp(static_cast<const float*>(got.data()), static_cast<const float*>(all.data()) + first * n,
                        static_cast<size_t>(m * n) * sizeof(float)),
            0)
      << what;
}

// Every tile, rows at any place in it, aligned and unaligned activations.
TEST(GemmSimt, RowsHaveTheSameBitsWhateverM) {
  constexpr int64_t kRows = 130;
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    for (const bool gated : {false, true}) {
      const int64_t n = gated ? 37 : 70, k = 168;
      Product aligned(dtype, n, k, gated, k + 8, kRows), unaligned(dtype, n, k, gated, k + 3, kRows);
      const Buffer all = aligned.multiply(0, kRows);
      EXPECT_EQ(cases::compare_rows(all, kRows, n, n, 3e-5, 1e-5,
                                    [&](int64_t r, int64_t c) { return aligned.reference(r, c); }),
                "");
      for (const int64_t m : {1, 2, 4, 5, 7, 8, 9, 16, 17, 32, 33, 64, 65}) {
        const int64_t first = (m * 7) % (kRows - m + 1);
        expect_rows(aligned.multiply(first, m), all, first, m, n, str_cat(dtype_name(dtype), " m ", m));
        expect_rows(unaligned.multiply(first, m), all, first, m, n, str_cat(dtype_name(dtype), " unaligned m ", m));
      }
    }
  }
}

// k is cut into ranges by the shape of the weight; who sums them changes no bit.
TEST(GemmSimt, RangesOfKInOneBlockAndInSeveral) {
  constexpr int64_t kRows = 33;
  struct Shape {
    DType dtype;
    int64_t n, k;
    bool gated;
  };
  for (const Shape& shape : {Shape{DType::bf16, 64, 2144, false}, Shape{DType::f16, 25, 3080, true}}) {
    const int64_t rows = shape.gated ? 2 * shape.n : shape.n;
    ASSERT_EQ(cuda::num_splits(rows, shape.k), shape.k / cuda::kMinSplitCols);
    Product product(shape.dtype, shape.n, shape.k, shape.gated, shape.k + 8, kRows);
    Buffer workspace(DType::u8, static_cast<int64_t>(cuda::gemm_workspace_bytes(rows, shape.k, shape.dtype)));
    std::memset(workspace.data(), 0, workspace.size_bytes());
    const Buffer all = product.multiply(0, kRows);
    EXPECT_EQ(cases::compare_rows(all, kRows, shape.n, shape.n, 3e-5, 1e-5,
                                  [&](int64_t r, int64_t c) { return product.reference(r, c); }),
              "");
    in_every_order([&](int order) {
      for (const int64_t m : {1, 7, 9, 20, 33}) {
        const std::string what = str_cat("m ", m, " order ", order);
        const uint64_t before = simt::counters().threads;
        expect_rows(product.multiply(kRows - m, m), all, kRows - m, m, shape.n, what);
        const uint64_t alone = simt::counters().threads - before;
        expect_rows(product.multiply(kRows - m, m, &workspace), all, kRows - m, m, shape.n, what + " with a workspace");
        EXPECT_GT(simt::counters().threads - before - alone, alone) << "the workspace was not used, " << what;
        EXPECT_TRUE(workspace.guards_hold());
      }
    });
  }
}

// The tile of 128 x 128 gives every row the bits that it has alone: one range of k and several, whole and half chunks,
// rows of both operands that end inside a tile, in three thread orders.
TEST(GemmSimt, LargeTilesKeepTheBits) {
  constexpr int64_t kRows = 200;
  struct Shape {
    DType dtype;
    int64_t n, k;
    bool gated;
  };
  for (const Shape& shape : {Shape{DType::bf16, 300, 168, false}, Shape{DType::f16, 150, 416, true},
                             Shape{DType::bf16, 69, 2208, true}, Shape{DType::f16, 141, 3112, false}}) {
    if (kSanitized && shape.k > 3000) continue;  // a sanitizer takes minutes for everything
    Product product(shape.dtype, shape.n, shape.k, shape.gated, shape.k + 8, kRows);
    Buffer alone(DType::f32, kRows * shape.n);
    for (int64_t row = 0; row < kRows; ++row) {
      std::memcpy(alone.as<float>() + row * shape.n, product.multiply(row, 1).data(),
                  static_cast<size_t>(shape.n) * sizeof(float));
    }
    EXPECT_EQ(cases::compare_rows(alone, 20, shape.n, shape.n, 3e-5, 1e-5,
                                  [&](int64_t r, int64_t c) { return product.reference(r, c); }),
              "");
    in_every_order([&](int order) {
      if (kSanitized && order != 0 && shape.k > 200) return;
      for (const int64_t m : {33, 64, 65, 130, 200}) {
        const std::string what = str_cat(dtype_name(shape.dtype), " k ", shape.k, " m ", m, " order ", order);
        const int64_t first = (m * 7) % (kRows - m + 1);
        if (m <= 65) expect_rows(product.multiply(first, m), alone, first, m, shape.n, what);
        if (m > 64) {
          expect_rows(product.multiply(first, m, nullptr, cuda::large_gemm), alone, first, m, shape.n, what + " large");
        }
      }
    });
  }
}

// A weight that ends where its memory ends, so that a sanitizer sees what is read behind it: half a chunk at the end of
// k, a tile with more rows than there are.
TEST(GemmSimt, NothingBehindAWeightIsRead) {
  Product product(DType::bf16, 64, 96, false, 104, 130);
  const Buffer all = product.multiply(0, 130);
  const auto free = [](void* p) { ::operator delete(p, std::align_val_t{64}); };
  const std::unique_ptr<void, decltype(free)> exact(
      ::operator new(cuda::packed_weight_bytes(64, 96, DType::bf16, false), std::align_val_t{64}), free);
  product.move_weight(exact.get());
  expect_rows(product.multiply(0, 130, nullptr, cuda::large_gemm), all, 0, 130, 64, "large");
  expect_rows(product.multiply(7, 3), all, 7, 3, 64, "few rows");
}

// The case table where the choice would be another one (a GPU has too many processors for shapes so small).
TEST(GemmSimt, CasesOnLargeTiles) {
  std::vector<cases::CaseEntry> all, entries;
  cases::add_large_gemm_cases(all);
  for (const cases::CaseEntry& entry : all) {
    if (entry.name.find("float32_m") == std::string::npos) entries.push_back(entry);
  }
  ASSERT_EQ(entries.size(), all.size() / 3 * 2);
  KernelTable table = table_of_this_family();
  table.gemm = cuda::large_gemm;
  run_cases(entries, table);
}

// Few tiles leave processors idle: then blocks of 64 tokens stream the weights. The emulation has three processors.
TEST(GemmSimt, LargeTilesOnlyWhereTheyFillTheProcessors) {
  if (std::string_view(cuda::kernels().name) == "simt") {
    Product many(DType::f16, 300, 96, false, 104, 200);
    const uint64_t before = simt::counters().threads;
    many.multiply(0, 200);
    EXPECT_EQ(simt::counters().threads - before, 6u * 256);
  }
  Product product(DType::bf16, 64, 96, false, 104, 130);
  const Buffer alone = product.multiply(0, 1);
  const uint64_t before = simt::counters().threads;
  expect_rows(product.multiply(0, 130), alone, 0, 1, 64, "streamed");
  EXPECT_EQ(simt::counters().threads - before, 3u * 128);
}

// Shapes too small for a workspace ask for none, and one that is too small is not used.
TEST(GemmSimt, WorkspaceOnlyWhereItHelps) {
  EXPECT_EQ(cuda::gemm_workspace_bytes(28672, 4096, DType::bf16), 0u);
  EXPECT_EQ(cuda::gemm_workspace_bytes(4096, 1000, DType::bf16), 0u);
  EXPECT_EQ(cuda::gemm_workspace_bytes(4096, 4096, DType::f32), 0u);
  EXPECT_EQ(cuda::gemm_workspace_bytes(4096, 4096, DType::bf16), 1024u + 4 * 4096 * 64 * 4);
  Product product(DType::bf16, 20, 2048, false, 2048, 2);
  Buffer small(DType::u8, 1024);
  const Buffer all = product.multiply(0, 2);
  expect_rows(product.multiply(0, 2, &small), all, 0, 2, 20, "small workspace");
  for (int64_t i = 0; i < 1024; ++i) ASSERT_EQ(small.as<uint8_t>()[i], 0xff);
}

// Row-major with zero padding; gate and up alternate by eight rows.
TEST(PackWeightSimt, LayoutIsRowMajorWithZeroPadding) {
  for (const bool gated : {false, true}) {
    Product product(DType::f32, 21, 37, gated, 37, 1);
    const PackedWeight& weight = product.weight();
    const int64_t rows = cuda::padded_rows(weight.rows), cols = cuda::padded_cols(37);
    ASSERT_EQ(cuda::packed_weight_bytes(weight.rows, 37, DType::f32, gated), static_cast<size_t>(rows * cols * 4));
    int64_t zeros = 0;
    for (int64_t i = 0; i < rows * cols; ++i) zeros += static_cast<const float*>(weight.data)[i] == 0.0f;
    EXPECT_EQ(zeros, rows * cols - weight.rows * 37);
    const int64_t up_row = cuda::packed_row(9, PackPart::up);
    if (gated) {
      EXPECT_EQ(up_row, 25);
      EXPECT_NE(static_cast<const float*>(weight.data)[up_row * cols + 36], 0.0f);
    }
  }
}

TEST(PackWeightSimt, ContractsAreChecked) {
  PackWeightParams p;
  p.rows = 4;
  p.cols = 3;
  p.weight = {nullptr, DType::f32, false, 4, 5};
  EXPECT_THROW(cuda::pack_weight(p, Stream{}), InternalError);
  p.weight.cols = 3;
  p.weight.dtype = DType::i32;
  EXPECT_THROW(cuda::pack_weight(p, Stream{}), NotSupported);
  GemmParams g;
  g.m = 1;
  g.weight = p.weight;
  g.out_dtype = DType::i32;
  EXPECT_THROW(cuda::gemm(g, Stream{}), NotSupported);
}

// What the cases leave out: token_id_offset, accumulation, rows of `out` that allow 16-byte stores.
TEST(EmbeddingSimt, OffsetAccumulationAndAlignedRows) {
  constexpr int64_t kVocab = 64, kDim = 40;  // no padded rows: the last token's row ends the table
  constexpr std::array<int32_t, 3> kTokens = {105, 100, 163};
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    for (const int64_t out_stride : {kDim + 8, kDim + 1}) {
      for (const bool rounds : {false, true}) {
        Buffer source(dtype, kVocab * kDim);
        cases::Random random(3);
        source.fill_uniform(random, 1.0);
        Buffer packed(DType::u8, static_cast<int64_t>(cuda::packed_weight_bytes(kVocab, kDim, dtype, false)));
        PackWeightParams pack;
        pack.source = source.data();
        pack.source_dtype = dtype;
        pack.rows = kVocab;
        pack.cols = pack.row_stride = kDim;
        pack.weight = {packed.data(), dtype, false, kVocab, kDim};
        cuda::pack_weight(pack, Stream{});
        Buffer out(rounds ? dtype : DType::f32, 3 * out_stride);
        EmbeddingParams p;
        p.token_ids = kTokens.data();
        p.token_id_offset = -100;
        p.num_tokens = 3;
        p.table = pack.weight;
        p.scale = 0.5f;
        p.out = out.data();
        p.out_dtype = rounds ? dtype : DType::f32;
        p.out_stride = out_stride;
        p.accumulate = !rounds;
        for (int64_t i = 0; !rounds && i < 3 * out_stride; ++i) {
          if (i % out_stride < kDim) out.set(i, 2.0);
        }
        cuda::embedding(p, Stream{});
        EXPECT_EQ(cases::compare_rows(out, 3, kDim, out_stride, 1e-6, cases::rounding_of(dtype),
                                      [&](int64_t t, int64_t i) {
                                        const int64_t row = kTokens[static_cast<size_t>(t)] - 100;
                                        return (rounds ? 0.0 : 2.0) + 0.5 * source.get(row * kDim + i);
                                      }),
                  "")
            << dtype_name(dtype) << " stride " << out_stride;
      }
    }
  }
}

}  // namespace
}  // namespace quire
