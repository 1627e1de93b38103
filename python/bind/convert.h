// Between Python dicts and the option structs of quire.h, driven by the field lists of engine/fields.h.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "engine/fields.h"

namespace quire::bind {

namespace py = pybind11;

// A struct with the dict's values; None keeps the default of fields that are not optional. An unknown key raises
// TypeError, a value of the wrong type TypeError with the field's name.
template <typename Params>
Params from_dict(const py::dict& values) {
  Params params;
  size_t num_known = 0;
  for_each_field(params, [&](const char* name, auto& field, const char*) {
    if (!values.contains(name)) return;
    ++num_known;
    const py::object value = values[name];
    using Field = std::remove_reference_t<decltype(field)>;
    constexpr bool is_optional = requires { field.has_value(); };
    if (value.is_none() && !is_optional) return;
    try {
      field = value.template cast<Field>();
    } catch (const py::cast_error&) {
      throw py::type_error(std::string(name) + " has the value " + py::repr(value).template cast<std::string>() +
                           ", which is of the wrong type");
    }
  });
  if (num_known == values.size()) return params;
  for (const auto& [key, value] : values) {
    bool known = false;
    const auto text = key.template cast<std::string>();
    for_each_field(params, [&](const char* name, auto&, const char*) { known = known || text == name; });
    if (!known) throw py::type_error("unknown field: " + text);
  }
  return params;
}

template <typename Params>
std::vector<std::pair<std::string, std::string>> list_fields() {
  std::vector<std::pair<std::string, std::string>> fields;
  Params params;
  for_each_field(params, [&](const char* name, auto&, const char* doc) { fields.emplace_back(name, doc); });
  return fields;
}

// Token ids from a list or an integer array.
inline std::vector<int32_t> token_ids(const py::handle& prompt) {
  if (py::isinstance<py::array>(prompt)) {
    const auto array = py::array_t<int32_t, py::array::c_style | py::array::forcecast>::ensure(prompt);
    if (!array || array.ndim() != 1) throw py::type_error("prompt token ids must be a one-dimensional integer array");
    return {array.data(), array.data() + array.size()};
  }
  return prompt.cast<std::vector<int32_t>>();
}

}  // namespace quire::bind
