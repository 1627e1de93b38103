// The emulated runtime for a test: fresh at its start, without anything alive at its end.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <vector>

#include "cuda/simt/cudart_emu/cudart_emu.h"

namespace quire {

class OnEmulatedRuntime : public testing::Test {
 protected:
  void SetUp() override {
    cudart_emu::reset();
    ASSERT_EQ(cudart_emu::live(), cudart_emu::Live{}) << "left by another test";
  }
  void TearDown() override {
    cudart_emu::reset();
    EXPECT_EQ(cudart_emu::live(), cudart_emu::Live{}) << "something outlives the test";
  }
};

// What follows owns one thing of the runtime each.
class TestStream {
 public:
  TestStream() { EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess); }
  ~TestStream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  TestStream(const TestStream&) = delete;
  TestStream& operator=(const TestStream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class TestEvent {
 public:
  explicit TestEvent(unsigned flags = cudaEventDisableTiming) {
    EXPECT_EQ(cudaEventCreateWithFlags(&event_, flags), cudaSuccess);
  }
  ~TestEvent() { static_cast<void>(cudaEventDestroy(event_)); }
  TestEvent(const TestEvent&) = delete;
  TestEvent& operator=(const TestEvent&) = delete;
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

template <typename T>
class Pinned {
 public:
  explicit Pinned(size_t count) : count_(count) {
    void* data = nullptr;
    EXPECT_EQ(cudaHostAlloc(&data, count * sizeof(T), cudaHostAllocPortable), cudaSuccess);
    data_ = static_cast<T*>(data);
  }
  ~Pinned() { static_cast<void>(cudaFreeHost(data_)); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  T* data() const { return data_; }
  T& operator[](size_t i) const { return data_[i]; }
  std::vector<T> values() const { return {data_, data_ + count_}; }

 private:
  size_t count_;
  T* data_ = nullptr;
};

// Device memory of whole pages, in the driver's four steps.
class DeviceBytes {
 public:
  explicit DeviceBytes(size_t num_bytes) : num_bytes_((num_bytes + 4095) / 4096 * 4096) {
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
    const CUmemAccessDesc access = {properties.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    EXPECT_EQ(cuMemAddressReserve(&address_, num_bytes_, 0, 0, 0), CUDA_SUCCESS);
    EXPECT_EQ(cuMemCreate(&handle_, num_bytes_, &properties, 0), CUDA_SUCCESS);
    EXPECT_EQ(cuMemMap(address_, num_bytes_, 0, handle_, 0), CUDA_SUCCESS);
    EXPECT_EQ(cuMemSetAccess(address_, num_bytes_, &access, 1), CUDA_SUCCESS);
    cudart_emu::set_used_bytes(data(), num_bytes);
  }
  ~DeviceBytes() {
    static_cast<void>(cuMemUnmap(address_, num_bytes_));
    static_cast<void>(cuMemRelease(handle_));
    static_cast<void>(cuMemAddressFree(address_, num_bytes_));
  }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  char* data() const { return reinterpret_cast<char*>(static_cast<uintptr_t>(address_)); }

 private:
  size_t num_bytes_;
  CUdeviceptr address_ = 0;
  CUmemGenericAllocationHandle handle_ = 0;
};

inline cudaError_t copy(void* to, const void* from, size_t num_bytes, cudaStream_t stream) {
  return cudaMemcpyAsync(to, from, num_bytes, cudaMemcpyDefault, stream);
}

}  // namespace quire
