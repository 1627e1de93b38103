// What quire calls of cuBLASLt: the functions as pointers, and the types and values they take.
//
// Declared here, so that no header and no library of CUDA is needed to build or to link;
// tests/cpp/kernels_simt/cublaslt_header_test.cpp holds this file against NVIDIA's cublasLt.h where that is installed.
// Names are NVIDIA's without the prefix cublasLt. Values have not changed from CUDA 11.4 to 13.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quire::cublaslt {

// Opaque to us: the library makes and reads them.
struct Context;
struct MatmulDescription;
struct MatrixLayout;
struct MatmulPreference;
using Handle = Context*;
using CudaStream = void*;

using Status = int;  // cublasStatus_t
constexpr Status kSuccess = 0;
constexpr Status kNotSupported = 15;

using DataType = int;  // cudaDataType
constexpr DataType kReal32F = 0;
constexpr DataType kReal16F = 2;
constexpr DataType kReal16BF = 14;

using ComputeType = int;  // cublasComputeType_t
constexpr ComputeType kCompute32F = 68;

constexpr int32_t kTranspose = 1;  // cublasOperation_t

using DescriptionAttribute = int;                       // cublasLtMatmulDescAttributes_t
constexpr DescriptionAttribute kDescriptionTransA = 3;  // int32_t

using LayoutAttribute = int;                // cublasLtMatrixLayoutAttribute_t
constexpr LayoutAttribute kLayoutCols = 3;  // uint64_t
constexpr LayoutAttribute kLayoutLd = 4;    // int64_t

using PreferenceAttribute = int;                                   // cublasLtMatmulPreferenceAttributes_t
constexpr PreferenceAttribute kPreferenceMaxWorkspaceBytes = 1;    // uint64_t
constexpr PreferenceAttribute kPreferenceReductionSchemeMask = 3;  // uint32_t
constexpr PreferenceAttribute kPreferenceMinAlignmentA = 5;        // uint32_t, bytes; B, C and D follow
constexpr uint32_t kReductionSchemeNone = 0;                       // no split-K

struct Algorithm {  // cublasLtMatmulAlgo_t
  uint64_t data[8];
};

struct HeuristicResult {  // cublasLtMatmulHeuristicResult_t
  Algorithm algorithm;
  size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
};

struct Functions {
  size_t (*get_version)();
  const char* (*get_status_name)(Status);
  Status (*create)(Handle*);
  Status (*matmul_desc_create)(MatmulDescription**, ComputeType, DataType scale);
  Status (*matmul_desc_set_attribute)(MatmulDescription*, DescriptionAttribute, const void*, size_t);
  Status (*matrix_layout_create)(MatrixLayout**, DataType, uint64_t rows, uint64_t cols, int64_t ld);
  Status (*matrix_layout_set_attribute)(MatrixLayout*, LayoutAttribute, const void*, size_t);
  Status (*matmul_preference_create)(MatmulPreference**);
  Status (*matmul_preference_destroy)(MatmulPreference*);
  Status (*matmul_preference_set_attribute)(MatmulPreference*, PreferenceAttribute, const void*, size_t);
  Status (*matmul_algo_get_heuristic)(Handle, MatmulDescription*, MatrixLayout* a, MatrixLayout* b, MatrixLayout* c,
                                      MatrixLayout* d, MatmulPreference*, int requested, HeuristicResult*,
                                      int* returned);
  Status (*matmul)(Handle, MatmulDescription*, const void* alpha, const void* a, MatrixLayout*, const void* b,
                   MatrixLayout*, const void* beta, const void* c, MatrixLayout*, void* d, MatrixLayout*,
                   const Algorithm*, void* workspace, size_t workspace_bytes, CudaStream);
};

}  // namespace quire::cublaslt
