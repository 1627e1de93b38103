// cublaslt_api.h against NVIDIA's cublasLt.h, at compile time, where CMake has found that (QUIRE_CUBLASLT_INCLUDE).
#include <gtest/gtest.h>

#include <cstddef>

#include "cuda/gemm/cublaslt_api.h"
#include "kernels_simt/same_call.h"

#if defined(QUIRE_HAS_CUBLASLT_HEADER)
#include <cublasLt.h>

namespace quire::cublaslt {
namespace {

#define QUIRE_SAME_CALL(member, name) static_assert(SameCall<decltype(Functions::member), decltype(&name)>::value)
QUIRE_SAME_CALL(get_version, cublasLtGetVersion);
QUIRE_SAME_CALL(get_status_name, cublasLtGetStatusName);
QUIRE_SAME_CALL(create, cublasLtCreate);
QUIRE_SAME_CALL(matmul_desc_create, cublasLtMatmulDescCreate);
QUIRE_SAME_CALL(matmul_desc_set_attribute, cublasLtMatmulDescSetAttribute);
QUIRE_SAME_CALL(matrix_layout_create, cublasLtMatrixLayoutCreate);
QUIRE_SAME_CALL(matrix_layout_set_attribute, cublasLtMatrixLayoutSetAttribute);
QUIRE_SAME_CALL(matmul_preference_create, cublasLtMatmulPreferenceCreate);
QUIRE_SAME_CALL(matmul_preference_destroy, cublasLtMatmulPreferenceDestroy);
QUIRE_SAME_CALL(matmul_preference_set_attribute, cublasLtMatmulPreferenceSetAttribute);
QUIRE_SAME_CALL(matmul_algo_get_heuristic, cublasLtMatmulAlgoGetHeuristic);
QUIRE_SAME_CALL(matmul, cublasLtMatmul);
#undef QUIRE_SAME_CALL

static_assert(kSuccess == CUBLAS_STATUS_SUCCESS && kNotSupported == CUBLAS_STATUS_NOT_SUPPORTED);
static_assert(kReal32F == CUDA_R_32F && kReal16F == CUDA_R_16F && kReal16BF == CUDA_R_16BF);
static_assert(kCompute32F == CUBLAS_COMPUTE_32F && kTranspose == CUBLAS_OP_T);
static_assert(kDescriptionTransA == CUBLASLT_MATMUL_DESC_TRANSA);
static_assert(kLayoutCols == CUBLASLT_MATRIX_LAYOUT_COLS && kLayoutLd == CUBLASLT_MATRIX_LAYOUT_LD);
static_assert(kPreferenceMaxWorkspaceBytes == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
static_assert(kPreferenceReductionSchemeMask == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
static_assert(kPreferenceMinAlignmentA == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
static_assert(kPreferenceMinAlignmentA + 1 == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
static_assert(kPreferenceMinAlignmentA + 2 == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
static_assert(kPreferenceMinAlignmentA + 3 == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
static_assert(kReductionSchemeNone == CUBLASLT_REDUCTION_SCHEME_NONE);
static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t));
static_assert(alignof(Algorithm) == alignof(cublasLtMatmulAlgo_t));

using Theirs = cublasLtMatmulHeuristicResult_t;
static_assert(sizeof(HeuristicResult) == sizeof(Theirs));
static_assert(offsetof(HeuristicResult, algorithm) == offsetof(Theirs, algo));
static_assert(offsetof(HeuristicResult, workspace_bytes) == offsetof(Theirs, workspaceSize));
static_assert(offsetof(HeuristicResult, state) == offsetof(Theirs, state));
static_assert(offsetof(HeuristicResult, waves) == offsetof(Theirs, wavesCount));

}  // namespace
}  // namespace quire::cublaslt

TEST(CublasLtHeader, MatchesOurDeclarations) { SUCCEED() << "at compile time"; }
#else
TEST(CublasLtHeader, MatchesOurDeclarations) { GTEST_SKIP() << "no cublasLt.h on this machine"; }
#endif
