// Regions and page-locked buffers of a CUDA device.
#pragma once

#include <memory>

#include "device/cuda/context.h"
#include "device/device.h"

namespace quire {

std::unique_ptr<Region> make_cuda_region(std::shared_ptr<CudaContext> context, RegionTag tag, size_t num_bytes);
std::unique_ptr<HostBuffer> make_cuda_host_buffer(std::shared_ptr<CudaContext> context, size_t num_bytes);

}  // namespace quire
