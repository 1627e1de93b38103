// A launcher's contract as a declaration: symbolic shapes that must agree across its tensors.
//
//   Match("gemm").shape(a, "a", {"m", "k"}).shape(out, "out", {"m", "n"});
//
// A symbol binds at its first use; a later use with another value fails a check whose message names the operation, the
// tensor, the symbol and both values. Numbers can be required through bind(). No allocation.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "tensor/tensor.h"

namespace quire {

class Match {
 public:
  explicit Match(const char* operation) : operation_(operation) {}

  Match& bind(const char* symbol, int64_t value) {
    require(symbol, value, "argument");
    return *this;
  }

  Match& shape(const Tensor& tensor, const char* name, std::initializer_list<const char*> symbols) {
    QUIRE_CHECK(tensor.rank == static_cast<int>(symbols.size()), operation_, ": ", name, " is ", tensor.to_string(),
                " but should have ", symbols.size(), " dimensions");
    QUIRE_CHECK(tensor.stride[static_cast<size_t>(tensor.rank - 1)] == 1, operation_, ": rows of ", name,
                " are not contiguous");
    int dim = 0;
    for (const char* symbol : symbols) require(symbol, tensor.size(dim++), name);
    return *this;
  }

  Match& dtype(const Tensor& tensor, const char* name, DType expected) {
    QUIRE_CHECK(tensor.dtype == expected, operation_, ": ", name, " is ", tensor.to_string(), " but should be ",
                dtype_name(expected));
    return *this;
  }

 private:
  struct Binding {
    const char* symbol;
    int64_t value;
  };

  void require(const char* symbol, int64_t value, const char* where) {
    for (size_t i = 0; i < num_bindings_; ++i) {
      if (std::strcmp(bindings_[i].symbol, symbol) != 0) continue;
      QUIRE_CHECK(bindings_[i].value == value, operation_, ": ", where, " has ", symbol, " = ", value, " but it was ",
                  bindings_[i].value, " before");
      return;
    }
    QUIRE_CHECK(num_bindings_ < bindings_.size(), operation_, ": too many symbols");
    bindings_[num_bindings_++] = {symbol, value};
  }

  const char* operation_;
  std::array<Binding, 8> bindings_{};
  size_t num_bindings_ = 0;
};

}  // namespace quire
