// Host code only; a .cu, so that both builds of the kernels have it. See cublaslt.h.
#include "cuda/gemm/cublaslt.h"

#include "base/check.h"

namespace quire::cuda {
namespace {

LibraryName library_name() {
  return {.title = "cuBLASLt",
          .variable = "QUIRE_CUBLASLT",
          .wheel = "nvidia-cublas",
          .files = {"libcublasLt.so.13", "libcublasLt.so.12"},
          .wheel_folders = {"nvidia/cu13/lib", "nvidia/cublas/lib"}};
}

void bind(SymbolBinder& symbol, cublaslt::Functions* functions) {
  symbol(&functions->get_version, "cublasLtGetVersion");
  symbol(&functions->get_status_name, "cublasLtGetStatusName");
  symbol(&functions->create, "cublasLtCreate");
  symbol(&functions->matmul_desc_create, "cublasLtMatmulDescCreate");
  symbol(&functions->matmul_desc_set_attribute, "cublasLtMatmulDescSetAttribute");
  symbol(&functions->matrix_layout_create, "cublasLtMatrixLayoutCreate");
  symbol(&functions->matrix_layout_set_attribute, "cublasLtMatrixLayoutSetAttribute");
  symbol(&functions->matmul_preference_create, "cublasLtMatmulPreferenceCreate");
  symbol(&functions->matmul_preference_destroy, "cublasLtMatmulPreferenceDestroy");
  symbol(&functions->matmul_preference_set_attribute, "cublasLtMatmulPreferenceSetAttribute");
  symbol(&functions->matmul_algo_get_heuristic, "cublasLtMatmulAlgoGetHeuristic");
  symbol(&functions->matmul, "cublasLtMatmul");
}

ProcessLibrary<cublaslt::Functions>& of_process() {
  // Never destroyed: other statics may ask at the end of the process.
  static auto* const it = new ProcessLibrary<cublaslt::Functions>(library_name(), find_cublaslt);
  return *it;
}

}  // namespace

CublasLtLibrary find_cublaslt(const CublasLtSearch& search) {
  CublasLtLibrary library;
  library.status = find_library(
      library_name(), search, [&](SymbolBinder& symbol) { bind(symbol, &library.functions); },
      [&] { return str_cat(library.functions.get_version()); }, &library.is_found);
  if (!library.is_found) library.functions = {};
  return library;
}

const cublaslt::Functions* cublaslt_functions() { return of_process().functions(); }

std::string cublaslt_status() { return of_process().status(); }

void use_cublaslt(const cublaslt::Functions* functions) {
  of_process().use(functions,
                   functions != nullptr ? "cuBLASLt as given by use_cublaslt" : "no cuBLASLt: use_cublaslt(nullptr)");
}

}  // namespace quire::cuda
