// Python's hooks; see hooks_binding.h.
#include "bind/hooks_binding.h"

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <utility>

namespace quire::bind {
namespace {

// A reference that may be dropped by a thread without the GIL, and after the interpreter's end.
std::shared_ptr<void> hold(py::object object) {
  return {object.release().ptr(), [](void* held) {
            if (Py_IsInitialized() == 0) return;
            const py::gil_scoped_acquire acquire;
            Py_XDECREF(static_cast<PyObject*>(held));
          }};
}

py::handle held_object(const std::shared_ptr<void>& held) { return static_cast<PyObject*>(held.get()); }

// Of the hooks that this thread has called.
thread_local bool is_interrupted = false;

// What Python code raised, as an error that needs no GIL. Ctrl-C is for the caller of the engine, too.
[[noreturn]] void rethrow(const py::error_already_set& error) {
  is_interrupted = is_interrupted || error.matches(PyExc_KeyboardInterrupt);
  throw std::runtime_error(error.what());
}

template <typename Use>
void with_python(const Use& use) {
  const py::gil_scoped_acquire acquire;
  try {
    use();
  } catch (const py::error_already_set& error) {
    rethrow(error);
  } catch (const py::cast_error& error) {
    throw std::runtime_error(error.what());
  }
}

py::list list_of(std::span<const int32_t> ids) {
  py::list list(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) list[i] = ids[i];
  return list;
}

std::string text_or_empty(const py::handle& text) { return text.is_none() ? std::string() : text.cast<std::string>(); }

// The array is Python's own, so that it may be kept after the call.
LogitsProcessor logits_processor(const py::handle& callable) {
  const bool wants_prompt = callable.attr("wants_prompt").cast<bool>();
  return [held = hold(py::reinterpret_borrow<py::object>(callable)), wants_prompt](
             std::span<const int32_t> prompt, std::span<const int32_t> output, std::span<float> logits) {
    with_python([&] {
      py::array_t<float> array(static_cast<py::ssize_t>(logits.size()), logits.data());
      const py::object first = wants_prompt ? py::object(list_of(prompt)) : py::object(py::none());
      const py::object result = held_object(held)(first, list_of(output), array);
      if (!result.is_none()) array = py::array_t<float, py::array::c_style | py::array::forcecast>::ensure(result);
      if (!array || static_cast<size_t>(array.size()) != logits.size()) {
        PyErr_Clear();
        throw std::runtime_error("it did not return a row of " + std::to_string(logits.size()) + " numbers");
      }
      std::copy_n(array.data(), logits.size(), logits.data());
    });
  };
}

class PyConstraint : public TokenConstraint {
 public:
  PyConstraint(py::object backend, py::object grammar) : backend_(hold(std::move(backend))), grammar_(hold(grammar)) {}

  std::shared_ptr<void> start() override {
    std::shared_ptr<void> state;
    with_python([&] { state = hold(held_object(grammar_).attr("start")()); });
    return state;
  }

  std::shared_ptr<void> fork(void* state) override {
    std::shared_ptr<void> copy;
    with_python([&] { copy = hold(held_object(grammar_).attr("fork")(state_of(state))); });
    return copy;
  }

  void fill_masks(std::span<MaskRow> rows) override {
    with_python([&] {
      // One array that holds all rows, whatever lies between them.
      const auto begin_of = [](const MaskRow& row) { return row.mask.data(); };
      uint32_t* const begin = begin_of(*std::ranges::min_element(rows, {}, begin_of));
      const auto num_words = static_cast<py::ssize_t>(rows.front().mask.size());
      const auto index_of = [&](const MaskRow& row) { return (row.mask.data() - begin) / num_words; };
      const py::ssize_t num_rows = 1 + index_of(*std::ranges::max_element(rows, {}, begin_of));
      const py::array_t<int32_t> words({num_rows, num_words}, reinterpret_cast<int32_t*>(begin),
                                       py::capsule(begin, [](void*) {}));
      py::list pairs(rows.size());
      for (size_t i = 0; i < rows.size(); ++i) pairs[i] = py::make_tuple(state_of(rows[i].state), index_of(rows[i]));
      const auto errors = held_object(backend_).attr("fill")(pairs, words).cast<py::list>();
      for (size_t i = 0; i < rows.size(); ++i) rows[i].error = text_or_empty(errors[i]);
    });
  }

  void commit(std::span<CommittedToken> tokens) override {
    with_python([&] {
      py::list pairs(tokens.size());
      for (size_t i = 0; i < tokens.size(); ++i) {
        pairs[i] = py::make_tuple(state_of(tokens[i].state), tokens[i].token_id);
      }
      const auto results = held_object(backend_).attr("commit")(pairs).cast<py::list>();
      for (size_t i = 0; i < tokens.size(); ++i) {
        const auto result = results[i].cast<py::tuple>();
        tokens[i].is_last = result[0].cast<bool>();
        tokens[i].error = text_or_empty(result[1]);
      }
    });
  }

  const void* group() const override { return backend_.get(); }

 private:
  static py::handle state_of(void* state) { return static_cast<PyObject*>(state); }

  std::shared_ptr<void> backend_, grammar_;
};

}  // namespace

SamplingParams sampling_params(const py::dict& values) {
  const bool has_hooks = values.contains("logits_processors") || values.contains("constraint");
  if (!has_hooks) return from_dict<SamplingParams>(values);
  const auto plain = py::reinterpret_steal<py::dict>(PyDict_Copy(values.ptr()));
  const py::object processors = plain.attr("pop")("logits_processors", py::none());
  const py::object constraint = plain.attr("pop")("constraint", py::none());
  auto params = from_dict<SamplingParams>(plain);
  if (!processors.is_none()) {
    for (const py::handle& callable : processors) params.logits_processors.push_back(logits_processor(callable));
  }
  if (!constraint.is_none()) {
    const auto pair = constraint.cast<py::tuple>();
    params.constraint = std::make_shared<PyConstraint>(pair[0], pair[1]);
  }
  return params;
}

BeamSearchParams beam_search_params(const py::dict& values) {
  if (!values.contains("constraint")) return from_dict<BeamSearchParams>(values);
  const auto plain = py::reinterpret_steal<py::dict>(PyDict_Copy(values.ptr()));
  const auto pair = plain.attr("pop")("constraint").cast<py::tuple>();
  auto params = from_dict<BeamSearchParams>(plain);
  params.constraint = std::make_shared<PyConstraint>(pair[0], pair[1]);
  return params;
}

void throw_interrupt() {
  if (!std::exchange(is_interrupted, false)) return;
  PyErr_SetNone(PyExc_KeyboardInterrupt);
  throw py::error_already_set();
}

}  // namespace quire::bind
