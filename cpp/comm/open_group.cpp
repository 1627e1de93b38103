// The choice; see open_group.h.
#include "comm/open_group.h"

#include "comm/loopback.h"
#include "comm/peer.h"

namespace quire {

std::unique_ptr<CommunicatorGroup> open_communicators(const std::vector<std::unique_ptr<Device>>& devices,
                                                      double time_limit, bool allow_peers) {
  const Device& first = *devices.front();
  if (!first.is_asynchronous()) return make_loopback_group(static_cast<int>(devices.size()), time_limit);
  if (!allow_peers) {
    throw NotSupported(
        str_cat("disable_custom_all_reduce=true leaves sums between devices to NCCL, which this version "
                "of quire does not use; leave it out on the device \"",
                first.name(), "\"."));
  }
  std::vector<Device*> all;
  for (const std::unique_ptr<Device>& device : devices) all.push_back(device.get());
  for (Device* device : all) device->share_memory_with(all);
  return make_peer_group(all, time_limit);
}

}  // namespace quire
