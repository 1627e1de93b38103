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
// Throws NotSupported where that kind of device has no collectives.
std::unique_ptr<CommunicatorGroup> open_communicators(const std::vector<std::unique_ptr<Device>>& devices,
                                                      double time_limit);

}  // namespace quire
