// What all parts of one CUDA device share: its streams, the driver's functions, and what became of it.
//
// Decides how errors are told: every failing call is a DeviceError with the call, the error and what to do, too little
// memory an OutOfMemory. Some errors end the device for this process; from then on each call says what ended it.
// Regions, buffers, events and graphs hold the context, so it lives as long as the last of them.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "device/region.h"

namespace quire {

// Functions of libcuda.so.1, which is not linked: the CUDA runtime finds them.
struct CudaDriver {
  decltype(&cuGetErrorName) get_error_name = nullptr;
  decltype(&cuGetErrorString) get_error_string = nullptr;
  decltype(&cuMemGetAllocationGranularity) get_granularity = nullptr;
  decltype(&cuMemAddressReserve) reserve = nullptr;
  decltype(&cuMemAddressFree) free_addresses = nullptr;
  decltype(&cuMemCreate) create = nullptr;
  decltype(&cuMemRelease) release = nullptr;
  decltype(&cuMemMap) map = nullptr;
  decltype(&cuMemUnmap) unmap = nullptr;
  decltype(&cuMemSetAccess) set_access = nullptr;
};

class CudaContext {
 public:
  explicit CudaContext(int index);
  ~CudaContext();
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  int index() const { return index_; }
  cudaStream_t compute_stream() const { return compute_; }
  cudaStream_t copy_stream() const { return copy_; }
  const CudaDriver& driver() const { return driver_; }

  // Of devices that reach this one's memory, besides itself.
  const std::vector<int>& peers() const { return peers_; }
  void set_peers(std::vector<int> indices) { peers_ = std::move(indices); }

  bool usable() const { return failure_.empty(); }

  // At the start of everything that asks the device: throws what ended it, and makes it the calling thread's device.
  void use();
  void check(cudaError_t error, const char* call) {
    if (error != cudaSuccess) [[unlikely]]
      fail(error, call, "");
  }
  // With what the memory was wanted for, should there be too little.
  void check_memory(cudaError_t error, const char* call, const std::string& purpose) {
    if (error != cudaSuccess) [[unlikely]]
      fail(error, call, purpose);
  }
  // The driver's error numbers are the runtime's wherever this class looks at them.
  void check_driver(CUresult result, const char* call, const std::string& purpose);
  void synchronize();
  // Of destructors: waits for what may still use their memory, and does not throw.
  void quiesce() noexcept;

 private:
  void find_driver();
  void make_streams();
  void destroy_streams() noexcept;
  [[noreturn]] void fail(cudaError_t error, const char* call, const std::string& purpose);
  [[noreturn]] void tell(cudaError_t error, const std::string& said, const std::string& purpose);

  int index_;
  std::string label_;    // "cuda:0"
  std::string failure_;  // what ended the device, or empty
  CudaDriver driver_;
  std::vector<int> peers_;
  cudaStream_t compute_ = nullptr, copy_ = nullptr;
};

}  // namespace quire
