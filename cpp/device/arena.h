// Scratch memory of a step: a stack of allocations over one region, sized by a dry run and then frozen.
//
// Measuring: no memory behind it; allocations only add up, and the worst case is recorded. Frozen: the region has
// exactly that size, and one byte more is a bug that fails a check. Verb: forward, sample.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/check.h"

namespace quire {

class Arena {
 public:
  static constexpr size_t kAlignment = 64;

  // Measuring until bind() is called.
  Arena() = default;

  bool measuring() const { return base_ == nullptr; }
  size_t high_water_bytes() const { return high_water_; }

  // Freezes the arena over [base, base + num_bytes).
  void bind(std::byte* base, size_t num_bytes) {
    QUIRE_CHECK(used_ == 0, "arena bound in the middle of a step");
    base_ = base;
    capacity_ = num_bytes;
  }

  // While measuring the pointer is not null but must not be read or written.
  template <typename T>
  T* allocate(int64_t count) {
    return reinterpret_cast<T*>(allocate_bytes(static_cast<size_t>(count) * sizeof(T)));
  }

  std::byte* allocate_bytes(size_t num_bytes) {
    const size_t begin = used_;
    used_ = begin + (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
    high_water_ = std::max(high_water_, used_);
    if (measuring()) return reinterpret_cast<std::byte*>(kAlignment) + begin;
    QUIRE_CHECK(used_ <= capacity_, "the arena is frozen at ", capacity_, " bytes and the step needs ", used_);
    return base_ + begin;
  }

  // Marks a level of the stack; everything allocated after it is given back when the scope ends.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), used_(arena.used_) {}
    ~Scope() { arena_.used_ = used_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    size_t used_;
  };

 private:
  std::byte* base_ = nullptr;
  size_t capacity_ = 0;
  size_t used_ = 0;
  size_t high_water_ = 0;
};

}  // namespace quire
