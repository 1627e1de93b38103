// Tagged bytes at a fixed address that can give their physical memory back.
//
// Everything that can sleep lives in one: pointers into a region stay valid while its memory is away, so tensors,
// tables and captured graphs built over it need not be made again after wake-up.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quire {

enum class RegionTag : uint8_t { weights, kv_cache, workspace };

constexpr const char* region_tag_name(RegionTag tag) {
  switch (tag) {
    case RegionTag::weights:
      return "weights";
    case RegionTag::kv_cache:
      return "kv_cache";
    case RegionTag::workspace:
      return "workspace";
  }
  return "unknown";
}

class Region {
 public:
  virtual ~Region() = default;  // gives addresses and memory back
  virtual std::byte* data() const = 0;
  virtual size_t num_bytes() const = 0;
  virtual RegionTag tag() const = 0;
  virtual bool resident() const = 0;
  // Gives the physical memory back; the addresses stay reserved and may not be touched until restore().
  virtual void release() = 0;
  // Backs the addresses with memory again; the contents are zero (host) or undefined.
  virtual void restore() = 0;

  // Shows `count` bytes of an open file from `offset` on in place of those of a resident region from `begin` on, whose
  // memory is given back. What is written later stays here, the file does not change. release() ends it. offset and
  // begin are multiples of 2 MiB. False: not here, and nothing has happened.
  virtual bool show_file(int /*fd*/, size_t /*offset*/, size_t /*begin*/, size_t /*count*/) { return false; }
  virtual bool shows_file() const { return false; }
  // Memory with the same contents in place of files, if any are shown.
  virtual void copy_file() {}
};

}  // namespace quire
