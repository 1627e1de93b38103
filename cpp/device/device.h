// One GPU, or the host: memory regions, copies, a stream and the table of kernels.
//
// Decides: what a worker may ask of a device. Does not know: models, batches, requests. Owned by a Worker and called
// from the engine's thread. The host implementation lies in host/; others are plugins behind the same interface.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "device/region.h"
#include "params/kernel_table.h"

namespace quire {

struct DeviceMemory {
  int64_t total_bytes = 0;
  int64_t available_bytes = 0;  // what this process may still take without pushing others out
};

class Device {
 public:
  virtual ~Device() = default;

  virtual std::string name() const = 0;  // "cpu"
  virtual const KernelTable& kernels() const = 0;
  virtual Stream stream() const = 0;
  virtual int num_threads() const = 0;
  virtual DeviceMemory memory() const = 0;

  // Reserves addresses and backs them with memory. Throws DeviceError naming the region and its size.
  virtual std::unique_ptr<Region> allocate(RegionTag tag, size_t num_bytes) = 0;
  virtual void copy_to_device(void* destination, const void* source, size_t num_bytes) = 0;
  virtual void copy_to_host(void* destination, const void* source, size_t num_bytes) = 0;
  // Returns when everything put on the stream so far is done.
  virtual void synchronize() = 0;
};

struct HostDeviceOptions {
  int num_threads = 0;  // 0: OMP_NUM_THREADS, else the physical cores
  std::string isa;      // "", portable, avx2, avx512
};

std::unique_ptr<Device> make_host_device(const HostDeviceOptions& options);

}  // namespace quire
