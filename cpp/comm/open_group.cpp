// The choice; see open_group.h.
#include "comm/open_group.h"

#include "comm/library.h"
#include "comm/loopback.h"
#include "comm/peer.h"

namespace quire {

std::unique_ptr<CommunicatorGroup> open_communicators(const std::vector<std::unique_ptr<Device>>& devices,
                                                      double time_limit, bool by_library) {
  if (!devices.front()->is_asynchronous()) return make_loopback_group(static_cast<int>(devices.size()), time_limit);
  std::vector<Device*> all;
  for (const std::unique_ptr<Device>& device : devices) all.push_back(device.get());
  if (by_library) return make_library_group(all, time_limit);
  for (Device* device : all) device->share_memory_with(all);
  return make_peer_group(all, time_limit);
}

}  // namespace quire
