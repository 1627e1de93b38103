// Which communicators the ranks of a group of devices use.
//
// Decides: by the kind of the devices. Knows nothing of models. Load time.
#pragma once

#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "device/device.h"

namespace quire {

// For two devices or more, all of a kind: one a rank, in order. `time_limit` in seconds, of a wait for another rank.
// GPUs sum with quire's own kernel, for which what they allocate from now on they all reach, or by the library of their
// maker, which must be there (check_ranks in engine/engine_config.cpp says so first).
std::unique_ptr<CommunicatorGroup> open_communicators(const std::vector<std::unique_ptr<Device>>& devices,
                                                      double time_limit, bool by_library);

}  // namespace quire
