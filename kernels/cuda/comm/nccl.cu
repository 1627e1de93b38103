// Host code only; a .cu, so that both builds of the kernels have it. See nccl.h.
#include "cuda/comm/nccl.h"

#include "base/check.h"

namespace quire::cuda {
namespace {

LibraryName library_name() {
  return {.title = "NCCL",
          .variable = "QUIRE_NCCL",
          .wheel = "nvidia-nccl-cu13",
          .files = {"libnccl.so.2"},
          .wheel_folders = {"nvidia/nccl/lib"}};
}

void bind(SymbolBinder& symbol, nccl::Functions* functions) {
  symbol(&functions->get_version, "ncclGetVersion");
  symbol(&functions->get_error_string, "ncclGetErrorString");
  symbol(&functions->get_last_error, "ncclGetLastError");
  symbol(&functions->comm_init_all, "ncclCommInitAll");
  symbol(&functions->comm_destroy, "ncclCommDestroy");
  symbol(&functions->comm_abort, "ncclCommAbort");
  symbol(&functions->comm_get_async_error, "ncclCommGetAsyncError");
  symbol(&functions->all_reduce, "ncclAllReduce");
  symbol(&functions->broadcast, "ncclBroadcast");
  symbol(&functions->send, "ncclSend");
  symbol(&functions->receive, "ncclRecv");
  symbol(&functions->group_start, "ncclGroupStart");
  symbol(&functions->group_end, "ncclGroupEnd");
}

// A library that has all functions is 2.13 or newer (ncclGetLastError), whose versions count in ten thousands.
std::string version_of(const nccl::Functions& functions) {
  int version = 0;
  const nccl::Result result = functions.get_version(&version);
  if (result != nccl::kSuccess) return str_cat("of unknown version (ncclGetVersion: ", result, ")");
  return str_cat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

ProcessLibrary<nccl::Functions>& of_process() {
  // Never destroyed: other statics may ask at the end of the process.
  static auto* const it = new ProcessLibrary<nccl::Functions>(library_name(), find_nccl);
  return *it;
}

}  // namespace

NcclLibrary find_nccl(const LibrarySearch& search) {
  NcclLibrary library;
  library.status = find_library(
      library_name(), search, [&](SymbolBinder& symbol) { bind(symbol, &library.functions); },
      [&] { return version_of(library.functions); }, &library.is_found);
  if (!library.is_found) library.functions = {};
  return library;
}

const nccl::Functions* nccl_functions() { return of_process().functions(); }

std::string nccl_status() { return of_process().status(); }

void use_nccl(const nccl::Functions* functions, const std::string& status) { of_process().use(functions, status); }

}  // namespace quire::cuda
