// Products that go to cuBLASLt, against an emulated one: what it is asked, what our epilogue makes of it, when the own
// kernels run instead.
#include <gtest/gtest.h>

#include <cstring>

#include "cuda/cuda_kernels.h"
#include "cuda/gemm/cublaslt.h"
#include "cuda/gemm/gemm.h"
#include "cuda/gemm/library_gemm.h"
#include "kernels/cases/gemm_cases.h"
#include "kernels_simt/emulated_cublaslt.h"

namespace quire {
namespace {

using cases::Buffer;
using cases::GemmCase;
using cases::GemmSpec;

class LibraryGemmSimt : public testing::Test {
 public:
  LibraryGemmSimt() { cuda::use_cublaslt(&emulated_cublaslt::reset()); }
  ~LibraryGemmSimt() override { cuda::use_cublaslt(nullptr); }
};

// A case whose products may go to the library.
struct LibraryCase {
  GemmCase made;
  Buffer workspace;

  explicit LibraryCase(const GemmSpec& spec, size_t workspace_bytes = 0)
      : made(spec, cuda::kernels(), Stream{}), workspace(DType::u8, bytes_for(spec, workspace_bytes)) {
    std::memset(workspace.data(), 0, 1024);
    made.reset();
  }
  static int64_t bytes_for(const GemmSpec& spec, size_t given) {
    const int64_t rows = spec.gated ? 2 * spec.n : spec.n;
    return static_cast<int64_t>(given > 0 ? given : cuda::least_library_workspace_bytes(rows));
  }
  GemmParams params() {
    GemmParams p = made.params();
    p.batch_invariant = false;
    p.workspace = workspace.data();
    p.workspace_bytes = workspace.size_bytes();
    return p;
  }
  std::string run() {
    cuda::gemm(params(), Stream{});
    EXPECT_TRUE(workspace.guards_hold());
    for (int i = 0; i < 1024; ++i) {
      if (workspace.as<uint8_t>()[i] != 0) return "the counters of the workspace are not zero";
    }
    return made.check();
  }
  std::vector<uint8_t> bits() const {
    const Buffer& out = *made.outputs().front();
    const auto* begin = static_cast<const uint8_t*>(out.data());
    return {begin, begin + out.size_bytes()};
  }
};

constexpr GemmSpec kPlain{.dtype = DType::bf16, .m = 70, .n = 38, .k = 24, .is_aligned = true};

// out_stride is n + 2, so n = 6 mod 8 gives rows of 16-bit results that start at 16 bytes.
TEST_F(LibraryGemmSimt, EveryEpilogue) {
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    GemmSpec plain = kPlain, rounded = kPlain, added = kPlain, odd = kPlain, bias = kPlain, gated = kPlain,
             cap = kPlain;
    rounded.rounds_output = true;
    added.accumulate = true;
    added.scale = 0.5f;
    odd.n = 37;  // rows of out that no 16-byte store reaches
    bias.has_bias = bias.rounds_output = true;
    bias.activation = Activation::gelu;
    gated.gated = gated.has_bias = gated.rounds_output = true;
    gated.n = 45;
    gated.activation = Activation::silu;
    cap.softcap = 1.5f;
    cap.accumulate = cap.has_bias = true;
    for (GemmSpec spec : {plain, rounded, added, odd, bias, gated, cap}) {
      spec.dtype = dtype;
      SCOPED_TRACE(cases::gemm_name(spec));
      const int before = emulated_cublaslt::counts().products;
      EXPECT_EQ(LibraryCase(spec).run(), "");
      EXPECT_EQ(emulated_cublaslt::counts().products, before + 1);
    }
  }
  EXPECT_EQ(emulated_cublaslt::counts().handles, 1);
}

// A product that the workspace has no room for goes in parts, the last one short.
TEST_F(LibraryGemmSimt, ProductsInParts) {
  for (const bool gated : {false, true}) {
    GemmSpec spec = kPlain;
    spec.m = 300;
    spec.gated = gated;
    spec.activation = Activation::relu;
    spec.accumulate = true;
    const int before = emulated_cublaslt::counts().products;
    EXPECT_EQ(LibraryCase(spec).run(), "");
    EXPECT_EQ(emulated_cublaslt::counts().products - before, 3);
    const int64_t rows = gated ? 2 * spec.n : spec.n;
    EXPECT_EQ(LibraryCase(spec, cuda::gemm_library_workspace_bytes(rows, spec.k, spec.dtype)).run(), "");
    EXPECT_EQ(emulated_cublaslt::counts().products - before, 4);
  }
}

TEST_F(LibraryGemmSimt, OneAlgorithmForEveryM) {
  for (const int64_t m : {65, 200, 66}) {
    for (const bool rounds : {false, true}) {
      GemmSpec spec = kPlain;
      spec.m = m;
      spec.rounds_output = rounds;
      EXPECT_EQ(LibraryCase(spec).run(), "");
    }
  }
  EXPECT_EQ(emulated_cublaslt::counts().products, 6);
  EXPECT_EQ(emulated_cublaslt::counts().questions, 2) << "one for float results, one for bf16";
  GemmSpec other = kPlain;
  other.k = 32;
  EXPECT_EQ(LibraryCase(other).run(), "");
  EXPECT_EQ(emulated_cublaslt::counts().questions, 3);
}

// Where the library is not asked, or cannot, the bits are those of batch_invariant = true.
TEST_F(LibraryGemmSimt, OwnKernelsOtherwise) {
  const auto expect_own = [](LibraryCase& library_case, const GemmParams& params, const char* why) {
    SCOPED_TRACE(why);
    const int before = emulated_cublaslt::counts().products;
    library_case.made.reset();
    cuda::gemm(params, Stream{});
    EXPECT_EQ(library_case.made.check(), "");
    const std::vector<uint8_t> bits = library_case.bits();
    GemmParams invariant = params;
    invariant.batch_invariant = true;
    library_case.made.reset();
    cuda::gemm(invariant, Stream{});
    EXPECT_EQ(library_case.bits(), bits);
    EXPECT_EQ(emulated_cublaslt::counts().products, before);
  };
  LibraryCase plain(kPlain);
  GemmParams p = plain.params();
  p.batch_invariant = true;
  expect_own(plain, p, "batch-invariant");
  p = plain.params();
  p.workspace = nullptr;
  expect_own(plain, p, "no workspace");
  p = plain.params();
  p.workspace_bytes -= 1;
  expect_own(plain, p, "workspace too small");
  GemmSpec few = kPlain, unaligned = kPlain;
  few.m = 64;
  unaligned.is_aligned = false;
  LibraryCase few_rows(few), unaligned_rows(unaligned);
  expect_own(few_rows, few_rows.params(), "64 rows");
  expect_own(unaligned_rows, unaligned_rows.params(), "unaligned activations");
  emulated_cublaslt::know_no_algorithm();
  expect_own(plain, plain.params(), "no algorithm");
  GemmSpec gated = kPlain;
  gated.gated = true;
  LibraryCase gated_rows(gated);
  expect_own(gated_rows, gated_rows.params(), "no algorithm, gated");
  EXPECT_EQ(emulated_cublaslt::counts().questions, 2);
  cuda::use_cublaslt(nullptr);
  expect_own(plain, plain.params(), "no library");
}

TEST_F(LibraryGemmSimt, FailuresNameTheCallAndTheStatus) {
  const auto message_of = [](const char* function, cublaslt::Status status) -> std::string {
    cuda::use_cublaslt(&emulated_cublaslt::reset());
    emulated_cublaslt::fail(function, status);
    LibraryCase library_case(kPlain);
    try {
      cuda::gemm(library_case.params(), Stream{});
    } catch (const DeviceError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message_of("matmul", 13), "cublasLtMatmul: CUBLAS_STATUS_EXECUTION_FAILED (13)");
  EXPECT_EQ(message_of("matmul", 15), "cublasLtMatmul: CUBLAS_STATUS_NOT_SUPPORTED (15)");
  EXPECT_EQ(message_of("create", 13), "cublasLtCreate: CUBLAS_STATUS_EXECUTION_FAILED (13)");
  EXPECT_EQ(message_of("heuristic", 13), "cublasLtMatmulAlgoGetHeuristic: CUBLAS_STATUS_EXECUTION_FAILED (13)");
  EXPECT_EQ(message_of("heuristic", 15), "") << "no algorithm is no failure";
}

TEST_F(LibraryGemmSimt, WorkspaceHoldsTheOwnOne) {
  for (const int64_t rows : {64, 4096, 28672, 128256}) {
    const size_t both = cuda::gemm_library_workspace_bytes(rows, 4096, DType::bf16);
    EXPECT_GE(both, cuda::gemm_workspace_bytes(rows, 4096, DType::bf16));
    EXPECT_GE(both, cuda::least_library_workspace_bytes(rows));
    EXPECT_LE(both, size_t{97} << 20) << rows;
  }
  EXPECT_EQ(cuda::kernels().gemm_library_workspace_bytes, &cuda::gemm_library_workspace_bytes);
}

}  // namespace
}  // namespace quire
