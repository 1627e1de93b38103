// Whether this machine has the GPU that was asked for, asked before anything is made.
#pragma once

#include <cstddef>
#include <string>

namespace quire {

// Throws DeviceError (no driver, an old one, no such device) or NotSupported (a GPU that the kernels do not run on).
void check_cuda_machine(int index);

std::string gib_text(size_t num_bytes);  // "1.50 GiB"

}  // namespace quire
