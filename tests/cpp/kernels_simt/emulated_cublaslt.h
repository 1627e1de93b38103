// What cuBLASLt does, as far as quire asks, in plain loops over host memory, behind the same pointers.
//
// It checks what it is asked (layouts, the reduction scheme, alignments, the workspace, whether the algorithm is the
// one it gave for these matrices) and answers CUBLAS_STATUS_INVALID_VALUE where the real one could go wrong.
#pragma once

#include "cuda/gemm/cublaslt_api.h"

namespace quire::emulated_cublaslt {

// Starts anew: counts are zero, every call succeeds.
const cublaslt::Functions& reset();

struct Counts {
  int handles = 0, questions = 0, products = 0;
};
Counts counts();

// The named function ("matmul", "heuristic", "create") answers this from now on.
void fail(const char* function, cublaslt::Status status);
// The question for an algorithm is answered by none.
void know_no_algorithm();

}  // namespace quire::emulated_cublaslt
