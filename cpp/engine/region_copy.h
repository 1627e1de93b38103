// What lies in a region, kept in plain host memory while the region's own memory is away. Engine thread only.
//
// Decides: how bytes get there and back. From an asynchronous device they pass through a ring of pinned slots, which
// lives as long as the transfer: page-locking the whole copy would take longer than copying it, and would stay with the
// process. Does not know: what the bytes are.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "device/device.h"

namespace quire {

// Whole pages from the operating system, which take memory when they are touched and give it back at once.
class PlainPages {
 public:
  // Throws OutOfMemory naming the size.
  explicit PlainPages(size_t num_bytes);
  ~PlainPages();
  PlainPages(const PlainPages&) = delete;
  PlainPages& operator=(const PlainPages&) = delete;

  std::byte* data() const { return data_; }

 private:
  size_t num_bytes_;
  std::byte* data_ = nullptr;
};

// Bytes [begin, begin + num_bytes) of a region.
struct RegionSpan {
  size_t begin = 0;
  size_t num_bytes = 0;
};

class RegionCopy {
 public:
  // Copies the spans of `region`, which is resident, and returns when they are there. Both are kept by reference.
  RegionCopy(Device& device, const Region& region, std::vector<RegionSpan> spans);

  // Copies them back into the region, which is resident again, and returns when they are there.
  void write_back() const;
  size_t num_bytes() const;

 private:
  Device& device_;
  const Region& region_;
  std::vector<RegionSpan> spans_;
  std::vector<std::unique_ptr<PlainPages>> pages_;  // one a span
};

}  // namespace quire
