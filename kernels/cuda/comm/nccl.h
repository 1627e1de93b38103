// Finds NCCL at run time. Decides which library of the machine it is; knows nothing of what is communicated.
//
// Nothing calls NCCL yet: ranks sum with quire's own kernel (reduce_rows.h), and only the status line is shown
// (`quire collect-env`).
// Where it is looked for: library_finder.h, with the environment variable QUIRE_NCCL and NVIDIA's wheels in
// nvidia/nccl/lib. Sought once a process, by the first one that asks; any thread may ask.
#pragma once

#include <string>

#include "cuda/comm/nccl_api.h"
#include "cuda/library_finder.h"

namespace quire::cuda {

// Null: there is none.
const nccl::Functions* nccl_functions();

// One line for users: which library it is, or what was tried in vain. Looks for it if nobody has.
std::string nccl_status();

using NcclLibrary = FoundLibrary<nccl::Functions>;
NcclLibrary find_nccl(const LibrarySearch& search);

}  // namespace quire::cuda
