// Weights of a running engine as Python changes and reads them: the same for both engines.
//
// The GIL is taken once a tensor, for asking for it; it is packed without.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bind/convert.h"
#include "bind/external_weights.h"
#include "quire/types.h"

namespace quire::bind {

// A tensor that Python gave and the array that keeps it.
inline std::pair<ExternalTensor, py::array> external_tensor(const py::handle& item) {
  const auto entry = item.cast<py::tuple>();
  const auto array = py::array::ensure(entry[1], py::array::c_style);
  if (!array) throw py::type_error("weights must be (name, array, dtype name) tuples");
  ExternalTensor tensor;
  tensor.name = entry[0].cast<std::string>();
  tensor.dtype = entry[2].cast<std::string>();
  tensor.shape.assign(array.shape(), array.shape() + array.ndim());
  tensor.data = array.data();
  return {std::move(tensor), array};
}

// `next()` gives a (name, array, dtype name) or None. What it raises is raised here, after the old values are back.
template <typename Engine>
uint64_t load_weights(Engine& engine, const py::function& next, bool atomic) {
  py::array kept;  // of the tensor that is being packed
  const TensorSource source = [&](ExternalTensor& tensor) {
    const py::gil_scoped_acquire acquire;
    const py::object item = next();
    if (item.is_none()) return false;
    std::tie(tensor, kept) = external_tensor(item);
    return true;
  };
  return engine.with([&](auto& model) { return model.load_weights(source, atomic); });
}

// Of (name, dtype name, shape) tuples.
template <typename Engine>
void check_weights(Engine& engine, const py::list& described) {
  std::vector<ExternalTensor> tensors;
  for (const py::handle& item : described) {
    const auto entry = item.cast<py::tuple>();
    ExternalTensor& tensor = tensors.emplace_back();
    tensor.name = entry[0].cast<std::string>();
    tensor.dtype = entry[1].cast<std::string>();
    tensor.shape = entry[2].cast<std::vector<int64_t>>();
  }
  engine.with([&](auto& model) {
    model.check_weights(tensors);
    return true;
  });
}

// Of a directory, or of the tensors that are given with it.
template <typename Engine>
uint64_t reload_weights(Engine& engine, const std::string& model_dir, const py::object& weights) {
  if (weights.is_none()) return engine.with([&](auto& model) { return model.reload_weights(model_dir); });
  const ExternalWeights external = external_weights(weights);
  return engine.with([&](auto& model) { return model.reload_weights(external.tensors); });
}

template <typename Engine>
uint64_t weights_version(Engine& engine) {
  return engine.with([](auto& model) { return model.weights_version(); });
}

inline py::list weight_list(const std::vector<WeightInfo>& all) {
  py::list list;
  for (const WeightInfo& one : all) {
    const py::object same_as = one.same_as.empty() ? py::object(py::none()) : py::object(py::str(one.same_as));
    list.append(py::make_tuple(one.name, one.dtype, py::tuple(py::cast(one.shape)), same_as, one.is_elsewhere));
  }
  return list;
}

// (name, dtype name, shape, name of the weight that it is or None, is it on another rank) of each.
template <typename Engine>
py::list weights(Engine& engine) {
  return weight_list(engine.with([](auto& model) { return model.weights(); }));
}

// The elements' bytes in a fresh, writable array.
inline py::array_t<uint8_t> byte_array(std::vector<std::byte>&& read) {
  auto* bytes = new std::vector<std::byte>(std::move(read));
  const py::capsule owner(bytes, [](void* held) { delete static_cast<std::vector<std::byte>*>(held); });
  return py::array_t<uint8_t>(static_cast<py::ssize_t>(bytes->size()), reinterpret_cast<uint8_t*>(bytes->data()),
                              owner);
}

template <typename Engine>
py::array_t<uint8_t> read_weight(Engine& engine, const std::string& name) {
  return byte_array(engine.with([&](auto& model) { return model.read_weight(name); }));
}

template <typename Engine>
py::list weights_of_rank(Engine& engine, int32_t rank) {
  return weight_list(engine.with([&](auto& model) { return model.weights_of_rank(rank); }));
}

template <typename Engine>
py::array_t<uint8_t> read_weight_of_rank(Engine& engine, int32_t rank, const std::string& name) {
  return byte_array(engine.with([&](auto& model) { return model.read_weight_of_rank(rank, name); }));
}

// `parts`: of each rank a list of (name, array, dtype name).
template <typename Engine>
uint64_t load_weights_of_ranks(Engine& engine, const py::list& parts) {
  std::vector<ExternalWeights> kept;
  std::vector<std::vector<ExternalTensor>> tensors;
  for (const py::handle& of_rank : parts) {
    kept.push_back(external_weights(py::reinterpret_borrow<py::object>(of_rank)));
    tensors.push_back(kept.back().tensors);
  }
  return engine.with([&](auto& model) { return model.load_weights_of_ranks(tensors); });
}

// Of models that ranks may share.
template <typename Engine, typename Class>
void bind_weights_of_ranks(Class& cls) {
  cls.def("weights_of_rank", &weights_of_rank<Engine>, py::arg("rank"))
      .def("read_weight_of_rank", &read_weight_of_rank<Engine>, py::arg("rank"), py::arg("name"))
      .def("load_weights_of_ranks", &load_weights_of_ranks<Engine>, py::arg("parts"));
}

template <typename Engine, typename Class>
void bind_weights(Class& cls) {
  cls.def("load_weights", &load_weights<Engine>, py::arg("next"), py::arg("atomic") = true)
      .def("check_weights", &check_weights<Engine>, py::arg("described"))
      .def("reload_weights", &reload_weights<Engine>, py::arg("model_dir"), py::arg("weights") = py::none())
      .def("weights_version", &weights_version<Engine>)
      .def("weights", &weights<Engine>)
      .def("read_weight", &read_weight<Engine>, py::arg("name"));
}

}  // namespace quire::bind
