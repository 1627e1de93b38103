// Arrays of a step on their way to the device, packed on the host and sent in one copy. Verb: upload.
//
// On the host nothing is sent: kernels read what was packed. One step at a time: what is packed next overwrites what
// was sent before, so that step must be done. Engine thread only.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <utility>

#include "device/arena.h"
#include "device/device.h"
#include "engine/sampling_batch.h"

namespace quire {

class Staging {
 public:
  // What an array takes.
  template <typename T>
  static size_t bytes(int64_t count) {
    return (static_cast<size_t>(count) * sizeof(T) + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
  }

  // `device` is kept by reference. Room for so many bytes, and more when they are asked for.
  Staging(Device& device, size_t num_bytes);

  // Starts anew, with room for `num_bytes`. Throws OutOfMemory.
  void begin(size_t num_bytes);
  // Where the host writes an array, and where the device will read it.
  template <typename T>
  std::pair<T*, T*> take(size_t count) {
    const size_t offset = used_;
    used_ += bytes<T>(static_cast<int64_t>(count));
    check_room();
    return {reinterpret_cast<T*>(host_->data() + offset), reinterpret_cast<T*>(device_base() + offset)};
  }
  template <typename T>
  T* put(const T* values, size_t count) {
    const auto [host, device] = take<T>(count);
    if (count > 0) std::memcpy(host, values, count * sizeof(T));
    return device;
  }
  void send();

 private:
  std::byte* device_base() const { return region_ != nullptr ? region_->data() : host_->data(); }
  void check_room() const;

  Device& device_;
  std::unique_ptr<HostBuffer> host_;
  std::unique_ptr<Region> region_;  // null on the host
  size_t used_ = 0;
};

// What the lists of a sampling row take, and the row with its lists put there. Its mask is left as it is.
size_t staged_list_bytes(const SamplingRow& row);
SamplingRow with_staged_lists(SamplingRow row, Staging& staging);

// The rows of a flat batch as the sampling kernel of an asynchronous device reads them.
class SamplingUpload {
 public:
  explicit SamplingUpload(Device& device) : staging_(device, size_t{64} << 10) {}
  // Room for what send() will bring. Throws OutOfMemory.
  void reserve(const SamplingBatch& sampling);
  // When the masks are filled. Returns where the rows lie on the device.
  const SamplingRow* send(const SamplingBatch& sampling);

 private:
  Staging staging_;
};

}  // namespace quire
