// An NVIDIA GPU as a Device, by the CUDA runtime and the driver's virtual memory, with the table of kernels/cuda.
//
// The sources of this folder are compiled twice: against NVIDIA's headers for the plugin libquire_cuda.so, and against
// the emulated runtime (kernels/cuda/simt/cudart_emu) for libquire_simt.so and for tests, which link them. Nothing here
// knows which of the two it is.
#pragma once

#include <memory>

#include "device/device.h"

namespace quire {

// Throws NotSupported or DeviceError that says what was found, what is needed and what to do.
std::unique_ptr<Device> make_cuda_device(int index);

}  // namespace quire
