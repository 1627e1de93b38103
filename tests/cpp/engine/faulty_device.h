// The CPU as a device that fails or hangs on demand.
//
// Kernel tables are plain functions, so what they need lies in a static: one faulty device at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "device/device.h"

namespace quire::test {

struct Faults {
  std::atomic<int> fail_attention_after{0}, hang_attention_after{0};  // the n-th launch from now; 0: none
  std::atomic<bool> fail_pack{false};
  std::atomic<int> num_devices{0};  // alive

  void hang() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_released_; });
  }
  void release() {
    {
      const std::lock_guard lock(mutex_);
      is_released_ = true;
    }
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_released_ = false;
};

class FaultyDevice final : public Device {
 public:
  FaultyDevice(std::unique_ptr<Device> device, Faults& faults) : device_(std::move(device)), faults_(faults) {
    sound() = &device_->kernels();
    planted() = &faults;
    kernels_ = device_->kernels();
    kernels_.paged_attention = [](const PagedAttentionParams& params, Stream stream) {
      if (is_due(planted()->fail_attention_after)) throw DeviceError("a planted fault");
      if (is_due(planted()->hang_attention_after)) planted()->hang();
      sound()->paged_attention(params, stream);
    };
    kernels_.pack_weight = [](const PackWeightParams& params, Stream stream) {
      if (planted()->fail_pack) throw DeviceError("a planted fault");
      sound()->pack_weight(params, stream);
    };
    ++faults.num_devices;
  }
  ~FaultyDevice() override { --faults_.num_devices; }
  FaultyDevice(const FaultyDevice&) = delete;
  FaultyDevice& operator=(const FaultyDevice&) = delete;

  std::string name() const override { return device_->name(); }
  const KernelTable& kernels() const override { return kernels_; }
  Stream stream() const override { return device_->stream(); }
  int num_threads() const override { return device_->num_threads(); }
  DeviceMemory memory() const override { return device_->memory(); }
  std::unique_ptr<Region> allocate(RegionTag tag, size_t num_bytes) override {
    return device_->allocate(tag, num_bytes);
  }
  std::unique_ptr<HostBuffer> allocate_host(size_t num_bytes) override { return device_->allocate_host(num_bytes); }
  void copy_to_device(void* to, const void* from, size_t num_bytes) override {
    device_->copy_to_device(to, from, num_bytes);
  }
  void copy_to_host(void* to, const void* from, size_t num_bytes) override {
    device_->copy_to_host(to, from, num_bytes);
  }
  void copy_async(void* to, const void* from, size_t num_bytes, Stream stream) override {
    device_->copy_async(to, from, num_bytes, stream);
  }
  void fill_async(void* to, std::byte value, size_t num_bytes, Stream stream) override {
    device_->fill_async(to, value, num_bytes, stream);
  }
  std::unique_ptr<Event> make_event() override { return device_->make_event(); }
  void wait_for(Stream stream, const Event& event) override { device_->wait_for(stream, event); }
  std::unique_ptr<Graph> capture(const std::function<void()>& body) override { return device_->capture(body); }
  void synchronize() override { device_->synchronize(); }

 private:
  static const KernelTable*& sound() {
    static const KernelTable* table = nullptr;
    return table;
  }
  static Faults*& planted() {
    static Faults* faults = nullptr;
    return faults;
  }
  static bool is_due(std::atomic<int>& countdown) { return countdown.load() > 0 && --countdown == 0; }

  std::unique_ptr<Device> device_;
  Faults& faults_;
  KernelTable kernels_;
};

}  // namespace quire::test
