// Memory of the emulated runtime: what may be touched by whom, how much there is, what is refused.
#include <cstring>
#include <string>

#include "cuda/simt/simt.h"
#include "cudart_emu/machine.h"

namespace quire {
namespace {

struct StoreArgs {
  char* address;
};
__global__ void store_kernel(const StoreArgs p) { *p.address = 1; }

void store(char* address, cudaStream_t stream) {
  simt::launch<store_kernel>({.grid = dim3(1), .block = dim3(1), .stream = {stream}}, StoreArgs{address});
}

class Memory : public OnEmulatedRuntime {};
using MemoryDeathTest = Memory;

TEST_F(Memory, IsNanBeforeItIsWritten) {
  const TestStream stream;
  const DeviceBytes memory(size_t{40} << 20);
  const Pinned<unsigned char> seen(8192);
  // Across a piece of the file that fresh memory is mapped from.
  ASSERT_EQ(copy(seen.data(), memory.data() + (size_t{16} << 20) - 4096, 8192, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(seen.values(), std::vector<unsigned char>(8192, 0xFF));
  // And what one region writes is in no other.
  ASSERT_EQ(cudaMemsetAsync(memory.data(), 1, 4096, stream), cudaSuccess);
  ASSERT_EQ(copy(seen.data(), memory.data() + (size_t{16} << 20), 8192, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(seen[0], 0xFF);
}

TEST_F(Memory, CopiesReachDeviceAndPageLockedMemoryAlone) {
  const TestStream stream;
  const DeviceBytes memory(100);
  const Pinned<char> pinned(100);
  std::vector<char> pageable(100);
  EXPECT_EQ(copy(memory.data(), pinned.data(), 100, stream), cudaSuccess);
  EXPECT_EQ(copy(memory.data(), pageable.data(), 100, stream), cudaErrorInvalidValue);
  const std::string text = cudaGetErrorString(cudaErrorInvalidValue);
  EXPECT_NE(text.find("neither device memory nor page-locked"), std::string::npos) << text;
  EXPECT_EQ(copy(pageable.data(), memory.data(), 100, stream), cudaErrorInvalidValue);
  EXPECT_EQ(copy(memory.data(), pinned.data(), 101, stream), cudaErrorInvalidValue);
  EXPECT_EQ(copy(memory.data() + 1, pinned.data(), 100, stream), cudaErrorInvalidValue);
  EXPECT_EQ(copy(memory.data() - 1, pinned.data(), 1, stream), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemsetAsync(memory.data(), 0, 101, stream), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(cudart_emu::num_queued(), 1);
}

TEST_F(Memory, FreedBeforeACopyIsDoneIsAnIllegalAddress) {
  const TestStream stream;
  const Pinned<char> pinned(64);
  {
    const DeviceBytes memory(64);
    ASSERT_EQ(copy(memory.data(), pinned.data(), 64, stream), cudaSuccess);
  }
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorIllegalAddress);
  const std::string text = cudaGetErrorString(cudaErrorIllegalAddress);
  EXPECT_NE(text.find("after its memory was freed"), std::string::npos) << text;
}

TEST_F(MemoryDeathTest, OfTheDeviceIsOutOfReachOfTheHost) {
  const TestStream stream;
  const DeviceBytes memory(4096);
  store(memory.data(), stream);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_DEATH(*static_cast<volatile char*>(memory.data()) = 1, "");
  cudart_emu::reset({.host_may_touch = true});
  EXPECT_EQ(memory.data()[0], 1);
}

TEST_F(MemoryDeathTest, KernelsDoNotGetPastTheEnd) {
  const TestStream stream;
  const DeviceBytes memory(4096), last(4096);
  EXPECT_DEATH(
      {
        store(memory.data() + 4096, stream);
        static_cast<void>(cudaStreamSynchronize(stream));
      },
      "");
  EXPECT_DEATH(
      {
        store(memory.data() - 1, stream);
        static_cast<void>(cudaStreamSynchronize(stream));
      },
      "");
#if defined(__SANITIZE_ADDRESS__)
  const DeviceBytes odd(100);
  EXPECT_DEATH(
      {
        store(odd.data() + 100, stream);
        static_cast<void>(cudaStreamSynchronize(stream));
      },
      "use-after-poison");
#endif
}

TEST_F(Memory, IsCountedFromCreationToTheLastHold) {
  cudart_emu::reset({.memory_bytes = 1 << 20});
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
  CUmemGenericAllocationHandle handle = 0, second = 0;
  ASSERT_EQ(cuMemCreate(&handle, 768 << 10, &properties, 0), CUDA_SUCCESS);
  EXPECT_EQ(cuMemCreate(&second, 512 << 10, &properties, 0), CUDA_ERROR_OUT_OF_MEMORY);
  size_t free_bytes = 0, total_bytes = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
  EXPECT_EQ(free_bytes, size_t{256} << 10);
  EXPECT_EQ(total_bytes, size_t{1} << 20);

  CUdeviceptr address = 0;
  ASSERT_EQ(cuMemAddressReserve(&address, 768 << 10, 0, 0, 0), CUDA_SUCCESS);
  EXPECT_EQ(cuMemMap(address + 4096, 768 << 10, 0, handle, 0), CUDA_ERROR_INVALID_VALUE) << "past the reserved end";
  ASSERT_EQ(cuMemMap(address, 768 << 10, 0, handle, 0), CUDA_SUCCESS);
  EXPECT_EQ(cuMemMap(address, 768 << 10, 0, handle, 0), CUDA_ERROR_INVALID_VALUE) << "mapped already";
  EXPECT_EQ(cuMemAddressFree(address, 768 << 10), CUDA_ERROR_INVALID_VALUE) << "still mapped";
  EXPECT_EQ(cuMemRelease(handle), CUDA_SUCCESS);
  EXPECT_EQ(cudart_emu::live().device_bytes, size_t{768} << 10) << "the mapping holds it";
  EXPECT_EQ(cuMemUnmap(address, 768 << 10), CUDA_SUCCESS);
  EXPECT_EQ(cudart_emu::live().device_bytes, 0u);
  EXPECT_EQ(cuMemAddressFree(address, 768 << 10), CUDA_SUCCESS);
  EXPECT_EQ(cuMemRelease(handle), CUDA_ERROR_INVALID_VALUE);
}

TEST_F(Memory, MappedWithoutAccessIsOutOfReach) {
  const TestStream stream;
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
  CUmemGenericAllocationHandle handle = 0;
  CUdeviceptr address = 0;
  ASSERT_EQ(cuMemAddressReserve(&address, 4096, 0, 0, 0), CUDA_SUCCESS);
  ASSERT_EQ(cuMemCreate(&handle, 4096, &properties, 0), CUDA_SUCCESS);
  ASSERT_EQ(cuMemMap(address, 4096, 0, handle, 0), CUDA_SUCCESS);
  EXPECT_EQ(cudaMemsetAsync(reinterpret_cast<void*>(address), 0, 16, stream), cudaErrorInvalidValue);
  EXPECT_EQ(cuMemUnmap(address, 4096), CUDA_SUCCESS);
  EXPECT_EQ(cuMemRelease(handle), CUDA_SUCCESS);
  EXPECT_EQ(cuMemAddressFree(address, 4096), CUDA_SUCCESS);
}

TEST_F(Memory, TheAllocationThatWasToFailFails) {
  cudart_emu::fail_allocation_after(3);
  const TestStream stream;
  const TestEvent event;
  void* pointer = nullptr;
  EXPECT_EQ(cudaHostAlloc(&pointer, 64, 0), cudaErrorMemoryAllocation);
  EXPECT_FALSE(cudart_emu::faults_pending());
  EXPECT_EQ(cudaHostAlloc(&pointer, 64, 0), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(pointer), cudaSuccess);
}

TEST_F(Memory, AMachineWithoutADeviceSaysSo) {
  int count = -1;
  cudart_emu::reset({.num_devices = 0});
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
  EXPECT_EQ(count, 0);
  cudart_emu::reset({.driver_version = 11040});
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorInsufficientDriver);
  cudart_emu::reset({.num_devices = 2});
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  EXPECT_EQ(count, 2);
  EXPECT_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
}

}  // namespace
}  // namespace quire
