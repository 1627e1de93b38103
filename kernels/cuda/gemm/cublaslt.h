// Finds cuBLASLt at run time. Decides which library of the machine it is; knows nothing of products.
//
// The first product that may use it looks for it, once a process; any thread may ask. Where: library_finder.h, with the
// environment variable QUIRE_CUBLASLT and NVIDIA's wheels in nvidia/cu13/lib and nvidia/cublas/lib. The kernels'
// emulation has no GPU that a library could use, so there only use_cublaslt provides one.
#pragma once

#include <string>

#include "cuda/gemm/cublaslt_api.h"
#include "cuda/library_finder.h"

namespace quire::cuda {

// Null: there is none.
const cublaslt::Functions* cublaslt_functions();

// One line for users: which library is used, or what was tried in vain. Looks for it if nobody has.
std::string cublaslt_status();

// What everybody gets from now on; null: none. For tests; the table must live on.
void use_cublaslt(const cublaslt::Functions* functions);

using CublasLtSearch = LibrarySearch;
using CublasLtLibrary = FoundLibrary<cublaslt::Functions>;
CublasLtLibrary find_cublaslt(const CublasLtSearch& search);

}  // namespace quire::cuda
