// Launchers of the CUDA table that put events around what they launch, for streams that somebody records.
//
// Decides: names and arguments of kernels' spans. What lies in arrays only the device knows: attention tells its
// bounds, without bytes and flops. In use while a device records, so nobody else pays.
#pragma once

#include "params/kernel_table.h"

namespace quire {

KernelTable recorded_launches();

}  // namespace quire
