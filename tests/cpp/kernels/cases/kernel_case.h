// A kernel case: inputs, a double-precision reference, a tolerance, and what it moves and computes.
//
// The same table of cases is the test (kernel_cases_test.cpp) and the benchmark (bench/cpp/kernels.cpp). A case knows
// the contract of kernels/params, not which backend runs it.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/dtype.h"
#include "base/hash.h"
#include "params/kernel_table.h"

namespace quire::cases {

class Buffer;

class KernelCase {
 public:
  virtual ~KernelCase() = default;
  // Puts outputs into the state they have before a launch.
  virtual void reset() {}
  virtual void run(const KernelTable& table, Stream stream) = 0;
  // "" when the outputs of one run after reset() are right, else the first mistake.
  virtual std::string check() const = 0;
  // What a run writes, for comparing the bits of two runs.
  virtual std::vector<const Buffer*> outputs() const = 0;

  double bytes = 0;  // read and written once
  double flops = 0;
};

struct CaseEntry {
  std::string name;
  bool is_benchmark = false;  // of a real model's shape; benchmarked, and tested only when small
  std::function<std::unique_ptr<KernelCase>(const KernelTable&, Stream)> make;
};

// The same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() { return state_ = mix64(state_); }
  double uniform(double low, double high) { return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53; }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }

 private:
  uint64_t state_;
};

// An array of a dtype, 64-byte aligned, between guards; filled with a NaN pattern that shows what was not written.
class Buffer {
 public:
  Buffer() = default;
  Buffer(DType dtype, int64_t count) : dtype_(dtype), count_(count) {
    total_bytes_ = 2 * kGuardBytes + size_bytes();
    allocate();
    std::memset(bytes_.get(), kGuard, total_bytes_);
    fill_untouched();
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&&) = default;
  Buffer& operator=(Buffer&&) = default;

  void* data() { return bytes_.get() + kGuardBytes; }
  const void* data() const { return bytes_.get() + kGuardBytes; }
  template <typename T>
  T* as() {
    return static_cast<T*>(data());
  }
  int64_t count() const { return count_; }
  size_t size_bytes() const { return static_cast<size_t>(count_) * dtype_bytes(dtype_); }

  double get(int64_t i) const {
    float value = 0;
    uint16_t half = 0;
    const uint8_t* at = bytes_.get() + kGuardBytes + static_cast<size_t>(i) * dtype_bytes(dtype_);
    if (dtype_ == DType::f32) {
      std::memcpy(&value, at, 4);
      return value;
    }
    std::memcpy(&half, at, 2);
    return dtype_ == DType::bf16 ? bf16_to_float(half) : f16_to_float(half);
  }
  void set(int64_t i, double x) {
    const float value = static_cast<float>(x);
    const uint16_t half = dtype_ == DType::bf16 ? float_to_bf16(value) : float_to_f16(value);
    uint8_t* at = bytes_.get() + kGuardBytes + static_cast<size_t>(i) * dtype_bytes(dtype_);
    if (dtype_ == DType::f32) {
      std::memcpy(at, &value, 4);
    } else {
      std::memcpy(at, &half, 2);
    }
  }
  void fill_uniform(Random& random, double scale) {
    for (int64_t i = 0; i < count_; ++i) set(i, random.uniform(-scale, scale));
  }
  void fill_untouched() { std::memset(data(), kUntouched, size_bytes()); }
  bool is_untouched(int64_t i) const {
    const uint8_t* at = bytes_.get() + kGuardBytes + static_cast<size_t>(i) * dtype_bytes(dtype_);
    for (size_t b = 0; b < dtype_bytes(dtype_); ++b) {
      if (at[b] != kUntouched) return false;
    }
    return true;
  }
  bool guards_hold() const {
    for (size_t i = 0; i < kGuardBytes; ++i) {
      if (bytes_[i] != kGuard || bytes_[total_bytes_ - 1 - i] != kGuard) return false;
    }
    return true;
  }
  bool same_bits(const Buffer& other) const {
    return size_bytes() == other.size_bytes() && std::memcmp(data(), other.data(), size_bytes()) == 0;
  }

 private:
  struct Free {
    // Constructors written out: gcc 12 does not see a default initializer until the enclosing class is complete.
    Free() : alignment(std::align_val_t{64}) {}
    explicit Free(std::align_val_t alignment_) : alignment(alignment_) {}
    std::align_val_t alignment;
    void operator()(uint8_t* bytes) const { ::operator delete(bytes, alignment); }
  };
  // Large ones on huge pages, as the regions of a device are; the TLB would decide the benchmarks otherwise. By
  // operator new, which the tests of a GPU replace.
  void allocate() {
    constexpr size_t kHugePage = size_t{2} << 20;
    const size_t alignment = total_bytes_ > 2 * kHugePage ? kHugePage : 64;
    const size_t size = (total_bytes_ + alignment - 1) / alignment * alignment;
    const auto aligned = static_cast<std::align_val_t>(alignment);
    bytes_ = std::unique_ptr<uint8_t[], Free>(static_cast<uint8_t*>(::operator new(size, aligned)), Free{aligned});
#if defined(__linux__)
    if (alignment == kHugePage) madvise(bytes_.get(), size, MADV_HUGEPAGE);
#endif
  }

  static constexpr size_t kGuardBytes = 256;
  static constexpr uint8_t kGuard = 0xa5;
  static constexpr uint8_t kUntouched = 0xff;  // a NaN in every floating-point type
  DType dtype_ = DType::f32;
  int64_t count_ = 0;
  size_t total_bytes_ = 0;
  std::unique_ptr<uint8_t[], Free> bytes_;
};

// Half a unit in the last place, relative.
inline double rounding_of(DType dtype) {
  return dtype == DType::bf16 ? 0x1p-8 : dtype == DType::f16 ? 0x1p-11 : 0x1p-23;
}

// Compares rows of `out` (row_length of row_stride elements) with expected(row, column), and wants the rest untouched.
template <typename Expected>
std::string compare_rows(const Buffer& out, int64_t rows, int64_t row_length, int64_t row_stride, double absolute,
                         double relative, const Expected& expected) {
  if (!out.guards_hold()) return "wrote outside of the output";
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < row_stride && row * row_stride + i < out.count(); ++i) {
      const int64_t at = row * row_stride + i;
      if (i >= row_length) {
        if (!out.is_untouched(at)) return str_cat("wrote between rows, at row ", row, " column ", i);
        continue;
      }
      const double want = expected(row, i), got = out.get(at);
      if (!(std::abs(got - want) <= absolute + relative * std::abs(want))) {
        return str_cat("row ", row, " column ", i, ": ", got, " instead of ", want);
      }
    }
  }
  return "";
}

}  // namespace quire::cases
