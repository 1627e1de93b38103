// Tensors that Python brings, as the core takes them.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "bind/convert.h"
#include "quire/types.h"

namespace quire::bind {

// Keeps the arrays alive while the weights are packed.
struct ExternalWeights {
  std::vector<ExternalTensor> tensors;
  std::vector<py::array> arrays;
};

inline ExternalWeights external_weights(const py::object& weights) {
  ExternalWeights external;
  for (const py::handle& item : weights) {
    const auto entry = item.cast<py::tuple>();
    const auto array = py::array::ensure(entry[1], py::array::c_style);
    if (!array) throw py::type_error("weights must be (name, contiguous array, dtype name) tuples");
    ExternalTensor tensor;
    tensor.name = entry[0].cast<std::string>();
    tensor.dtype = entry[2].cast<std::string>();
    tensor.shape.assign(array.shape(), array.shape() + array.ndim());
    tensor.data = array.data();
    external.tensors.push_back(std::move(tensor));
    external.arrays.push_back(array);
  }
  return external;
}

}  // namespace quire::bind
