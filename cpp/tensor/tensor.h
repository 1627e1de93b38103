// A typed, non-owning view of up to four dimensions: a value, owned by nobody.
//
// Knows: where, what type, which shape and strides (in elements). Does not know: who owns the bytes, on which device.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "base/check.h"
#include "base/dtype.h"

namespace quire {

struct Tensor {
  static constexpr int kMaxRank = 4;

  void* data = nullptr;
  DType dtype = DType::f32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> stride{};

  // A contiguous, row-major view.
  static Tensor contiguous(void* data, DType dtype, std::initializer_list<int64_t> shape);

  int64_t size(int dim) const { return shape[static_cast<size_t>(dim)]; }
  int64_t row_stride() const { return stride[0]; }
  int64_t num_elements() const;
  bool is_contiguous() const;
  std::string to_string() const;  // "bfloat16[12, 576]"

  // Columns [begin, end) of a matrix; shares the data.
  Tensor columns(int64_t begin, int64_t end) const;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

}  // namespace quire
