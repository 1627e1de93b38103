// Which Python exception an error of libquire becomes; each extension module registers it once.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>

#include "base/check.h"

namespace quire::bind {

// InvalidArgument is a std::invalid_argument, which pybind11 turns into ValueError by itself.
inline void register_errors() {
  pybind11::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const NotSupported& unsupported) {
      PyErr_SetString(PyExc_NotImplementedError, unsupported.what());
    } catch (const InternalError& bug) {
      PyErr_SetString(PyExc_RuntimeError, bug.what());
    }
  });
}

}  // namespace quire::bind
