// Regions by the driver's virtual memory: addresses are reserved once, physical memory comes and goes behind them.
//
// A region takes whole pages of the device (2 MiB). Before its memory goes, the streams are waited for: unmapping does
// not wait for kernels by itself. Whatever fails on the way leaves nothing behind.
#include "device/cuda/memory.h"

#include <utility>
#include <vector>

#include "device/cuda/machine.h"

#if defined(QUIRE_CUDART_EMULATED)
#include "cuda/simt/cudart_emu/cudart_emu.h"
#endif

namespace quire {
namespace {

// The emulation refuses accesses to the rest of the last page; a GPU has no way to.
void limit_to([[maybe_unused]] const void* data, [[maybe_unused]] size_t num_bytes) {
#if defined(QUIRE_CUDART_EMULATED)
  cudart_emu::set_used_bytes(data, num_bytes);
#endif
}

class CudaRegion final : public Region {
 public:
  CudaRegion(std::shared_ptr<CudaContext> context, RegionTag tag, size_t num_bytes)
      : context_(std::move(context)), tag_(tag), num_bytes_(num_bytes) {
    if (num_bytes_ == 0) {
      resident_ = true;
      return;
    }
    context_->use();
    const CUmemAllocationProp properties = this->properties();
    size_t page = 0;
    check(context_->driver().get_granularity(&page, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
          "cuMemGetAllocationGranularity");
    mapped_bytes_ = (num_bytes_ + page - 1) / page * page;
    check(context_->driver().reserve(&address_, mapped_bytes_, 0, 0, 0), "cuMemAddressReserve");
    try {
      restore();
    } catch (...) {
      static_cast<void>(context_->driver().free_addresses(address_, mapped_bytes_));
      throw;
    }
  }

  ~CudaRegion() override {
    if (address_ == 0) return;
    context_->quiesce();
    if (resident_) {
      static_cast<void>(context_->driver().unmap(address_, mapped_bytes_));
      static_cast<void>(context_->driver().release(handle_));
    }
    static_cast<void>(context_->driver().free_addresses(address_, mapped_bytes_));
  }
  CudaRegion(const CudaRegion&) = delete;
  CudaRegion& operator=(const CudaRegion&) = delete;

  std::byte* data() const override { return reinterpret_cast<std::byte*>(static_cast<uintptr_t>(address_)); }
  size_t num_bytes() const override { return num_bytes_; }
  RegionTag tag() const override { return tag_; }
  bool resident() const override { return resident_; }

  void release() override {
    if (!resident_ || num_bytes_ == 0) return;
    context_->synchronize();
    check(context_->driver().unmap(address_, mapped_bytes_), "cuMemUnmap");
    resident_ = false;
    check(context_->driver().release(handle_), "cuMemRelease");
  }

  void restore() override {
    if (resident_) return;
    context_->use();
    const CudaDriver& driver = context_->driver();
    const CUmemAllocationProp properties = this->properties();
    check(driver.create(&handle_, mapped_bytes_, &properties, 0), "cuMemCreate");
    bool is_mapped = false;
    try {
      check(driver.map(address_, mapped_bytes_, 0, handle_, 0), "cuMemMap");
      is_mapped = true;
      CUmemAccessDesc access = {.location = properties.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
      std::vector<CUmemAccessDesc> all = {access};
      for (const int peer : context_->peers()) {
        access.location.id = peer;
        all.push_back(access);
      }
      check(driver.set_access(address_, mapped_bytes_, all.data(), all.size()), "cuMemSetAccess");
    } catch (...) {
      if (is_mapped) static_cast<void>(driver.unmap(address_, mapped_bytes_));
      static_cast<void>(driver.release(handle_));
      throw;
    }
    limit_to(data(), num_bytes_);
    resident_ = true;
  }

 private:
  CUmemAllocationProp properties() const {
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    properties.location.id = context_->index();
    return properties;
  }
  void check(CUresult result, const char* call) {
    if (result == CUDA_SUCCESS) return;
    context_->check_driver(result, call,
                           str_cat("the region \"", region_tag_name(tag_), "\" of ", gib_text(num_bytes_)));
  }

  std::shared_ptr<CudaContext> context_;
  RegionTag tag_;
  size_t num_bytes_;
  size_t mapped_bytes_ = 0;
  CUdeviceptr address_ = 0;
  CUmemGenericAllocationHandle handle_ = 0;
  bool resident_ = false;
};

class CudaHostBuffer final : public HostBuffer {
 public:
  CudaHostBuffer(std::shared_ptr<CudaContext> context, size_t num_bytes)
      : context_(std::move(context)), num_bytes_(num_bytes) {
    context_->use();
    if (num_bytes_ == 0) return;
    void* data = nullptr;
    context_->check_memory(cudaHostAlloc(&data, num_bytes_, cudaHostAllocPortable), "cudaHostAlloc",
                           str_cat(num_bytes_, " bytes of page-locked host memory"));
    data_ = static_cast<std::byte*>(data);
  }
  // Copies to and from it may be under way.
  ~CudaHostBuffer() override {
    if (data_ == nullptr) return;
    context_->quiesce();
    static_cast<void>(cudaFreeHost(data_));
    static_cast<void>(cudaGetLastError());
  }
  CudaHostBuffer(const CudaHostBuffer&) = delete;
  CudaHostBuffer& operator=(const CudaHostBuffer&) = delete;

  std::byte* data() const override { return data_; }
  size_t num_bytes() const override { return num_bytes_; }

 private:
  std::shared_ptr<CudaContext> context_;
  size_t num_bytes_;
  std::byte* data_ = nullptr;
};

}  // namespace

std::unique_ptr<Region> make_cuda_region(std::shared_ptr<CudaContext> context, RegionTag tag, size_t num_bytes) {
  return std::make_unique<CudaRegion>(std::move(context), tag, num_bytes);
}

std::unique_ptr<HostBuffer> make_cuda_host_buffer(std::shared_ptr<CudaContext> context, size_t num_bytes) {
  return std::make_unique<CudaHostBuffer>(std::move(context), num_bytes);
}

}  // namespace quire
