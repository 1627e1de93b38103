// Finds cuBLASLt at run time. Decides which library of the machine it is; knows nothing of products.
//
// The first product that may use it looks for it, once a process; any thread may ask. Looked for, in this order: a
// library that the process has loaded already (torch's, say); the file or folder in the environment variable
// QUIRE_CUBLASLT; nvidia/cu13/lib and nvidia/cublas/lib, where NVIDIA's wheels have it, below each folder of
// set_cublaslt_folders; the loader's own path. The kernels' emulation has no GPU that a library could use, so there
// only use_cublaslt provides one.
#pragma once

#include <string>
#include <vector>

#include "cuda/gemm/cublaslt_api.h"

namespace quire::cuda {

// Null: there is none.
const cublaslt::Functions* cublaslt_functions();

// One line for users: which library is used, or what was tried in vain. Looks for it if nobody has.
std::string cublaslt_status();

// Where wheels are installed (site-packages). Has no effect after the first look.
void set_cublaslt_folders(std::vector<std::string> folders);

// What everybody gets from now on; null: none. For tests; the table must live on.
void use_cublaslt(const cublaslt::Functions* functions);

struct CublasLtSearch {
  bool takes_loaded = true;          // one that is in the process
  std::string named;                 // QUIRE_CUBLASLT
  std::vector<std::string> folders;  // of wheels
  bool asks_loader = true;           // for the plain name
};
struct CublasLtLibrary {
  bool is_found = false;
  cublaslt::Functions functions = {};
  std::string status;
};
CublasLtLibrary find_cublaslt(const CublasLtSearch& search);

}  // namespace quire::cuda
