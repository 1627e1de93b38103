// Collectives between devices by a library of their maker (Device::open_collectives, NCCL).
//
// Decides: when the library is called, and what it leaves to quire's own kernels. Ranks' host threads meet; the last to
// come puts the collective on the streams of all ranks in one group of calls, so nothing that waits for another rank
// runs unless every rank has come, and one thread at a time is in the library. Which order it sums in, and what runs on
// the links, the library decides.
//
// A rank's sum comes in place into its `partial`, or into `out` where nothing is added to that: no memory is needed for
// it, and no rank reads another's. reduce_rows adds the residual. Columns come in blocks of rows to memory of the first
// rank and are copied to their places. No norm is fused.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "device/device.h"

namespace quire {

constexpr size_t kGatherBytes = size_t{16} << 20;  // a block of columns, on the first device

// The devices, all different, are used by the ranks' threads and must live as long as these call; `time_limit` in
// seconds. Throws NotSupported where there is no library.
std::unique_ptr<CommunicatorGroup> make_library_group(const std::vector<Device*>& devices, double time_limit,
                                                      size_t gather_bytes = kGatherBytes);

}  // namespace quire
