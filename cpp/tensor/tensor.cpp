// Shape arithmetic of tensors; see tensor.h.
#include "tensor/tensor.h"

namespace quire {

Tensor Tensor::contiguous(void* data, DType dtype, std::initializer_list<int64_t> shape) {
  QUIRE_CHECK(shape.size() <= kMaxRank, "rank ", shape.size());
  Tensor tensor{.data = data, .dtype = dtype, .rank = static_cast<int>(shape.size())};
  size_t dim = 0;
  for (const int64_t size : shape) tensor.shape[dim++] = size;
  int64_t stride = 1;
  for (int d = tensor.rank - 1; d >= 0; --d) {
    tensor.stride[static_cast<size_t>(d)] = stride;
    stride *= tensor.size(d);
  }
  return tensor;
}

int64_t Tensor::num_elements() const {
  int64_t count = 1;
  for (int d = 0; d < rank; ++d) count *= size(d);
  return count;
}

bool Tensor::is_contiguous() const {
  int64_t expected = 1;
  for (int d = rank - 1; d >= 0; --d) {
    if (size(d) != 1 && stride[static_cast<size_t>(d)] != expected) return false;
    expected *= size(d);
  }
  return true;
}

std::string Tensor::to_string() const {
  std::string text = std::string(dtype_name(dtype)) + "[";
  for (int d = 0; d < rank; ++d) text += (d > 0 ? ", " : "") + std::to_string(size(d));
  return text + "]";
}

Tensor Tensor::columns(int64_t begin, int64_t end) const {
  QUIRE_CHECK(rank == 2 && begin >= 0 && begin <= end && end <= size(1), "columns [", begin, ", ", end, ") of ",
              to_string());
  Tensor view = *this;
  view.data = static_cast<std::byte*>(data) + static_cast<size_t>(begin) * dtype_bytes(dtype);
  view.shape[1] = end - begin;
  return view;
}

}  // namespace quire
