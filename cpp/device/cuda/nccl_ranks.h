// NCCL between GPUs of this process, one a rank, behind CollectiveLibrary.
#pragma once

#include <memory>
#include <vector>

#include "device/collective_library.h"
#include "device/cuda/context.h"

namespace quire {

// Throws NotSupported, with what was tried, where NCCL was not found.
std::unique_ptr<CollectiveLibrary> make_nccl_ranks(std::vector<std::shared_ptr<CudaContext>> contexts);

}  // namespace quire
