// Hands out aligned pieces of a region from a base address, or only counts them when there is none.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/arena.h"

namespace quire {

class Placer {
 public:
  explicit Placer(std::byte* base) : base_(base) {}

  template <typename T>
  T* take(int64_t count) {
    const size_t begin = used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
    return base_ != nullptr ? reinterpret_cast<T*>(base_ + begin) : nullptr;
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

}  // namespace quire
