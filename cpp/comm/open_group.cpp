// The choice; see open_group.h.
#include "comm/open_group.h"

#include "comm/loopback.h"

namespace quire {

std::unique_ptr<CommunicatorGroup> open_communicators(const std::vector<std::unique_ptr<Device>>& devices,
                                                      double time_limit) {
  const Device& first = *devices.front();
  if (first.is_asynchronous()) {
    throw NotSupported(str_cat("tensor_parallel_size=", devices.size(), " is not supported on the device \"",
                               first.name(), "\" by this version of quire; it is on device=\"cpu\"."));
  }
  return make_loopback_group(static_cast<int>(devices.size()), time_limit);
}

}  // namespace quire
