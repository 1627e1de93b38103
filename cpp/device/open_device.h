// From the name a user gives to a device: "cpu", "cuda", "cuda:1", "simt", "simt:1" or "auto".
//
// "auto" is cuda where its plugin and a GPU that works are there, else cpu, and never an error.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "device/device.h"

namespace quire {

// Throws InvalidArgument for names that are none, NotSupported without the plugin, and what the device itself throws.
std::unique_ptr<Device> open_device(const std::string& name, const HostDeviceOptions& host_options);

// The devices of `count` ranks: of a CPU as many that share its threads out, of "cuda" the first ones, of "cuda:2"
// those from there on, of "cuda:0,0,1" those that are listed.
std::vector<std::unique_ptr<Device>> open_devices(const std::string& name, int count,
                                                  const HostDeviceOptions& host_options);
// The most of `count` ranks that one of these devices has.
int num_ranks_of_a_device(const std::string& name, int count);

}  // namespace quire
