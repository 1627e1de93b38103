// Finds NCCL at run time. Decides which library of the machine it is; knows nothing of what is communicated.
//
// It is used where a user asks for it (disable_custom_all_reduce, device/cuda/nccl_library.h); else ranks sum with
// quire's own kernel (reduce_rows.h). Where it is looked for: library_finder.h, with the environment variable
// QUIRE_NCCL and NVIDIA's wheels in nvidia/nccl/lib. Sought once a process, by the first one that asks; any thread may
// ask. The kernels' emulation has no GPU that a library could use, so there only use_nccl provides one.
#pragma once

#include <string>

#include "cuda/comm/nccl_api.h"
#include "cuda/library_finder.h"

namespace quire::cuda {

// Null: there is none.
const nccl::Functions* nccl_functions();

// One line for users: which library it is, or what was tried in vain. Looks for it if nobody has.
std::string nccl_status();

// What everybody gets from now on, with the status line; null: none. For tests; the table must live on.
void use_nccl(const nccl::Functions* functions, const std::string& status);

using NcclLibrary = FoundLibrary<nccl::Functions>;
NcclLibrary find_nccl(const LibrarySearch& search);

}  // namespace quire::cuda
