// How quire says that something is wrong.
//
// Three kinds, by whose fault it is: InvalidArgument (the caller's; carries the values and a hint), DeviceError (the
// device refused; carries the API's name) and a failed QUIRE_CHECK (ours: an impossible state, with both values).
// All derive from std exceptions, so users of the installed headers catch std::invalid_argument / std::runtime_error.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace quire {

// A mistake of the caller, found at the border before any work is done. Python: ValueError.
class InvalidArgument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// Throws InvalidArgument unless the condition holds.
inline void require(bool condition, const std::string& message) {
  if (!condition) throw InvalidArgument(message);
}

// A feature this build or stage does not have; the message names it and what to use instead. Python:
// NotImplementedError.
class NotSupported : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A device or operating-system call failed; the message names the call.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The device has too little memory for what was asked; nothing else is lost.
class OutOfMemory : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

// An impossible state: a bug in quire.
class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// Concatenates its arguments as a stream would print them.
template <typename... Args>
std::string str_cat(const Args&... args) {
  std::ostringstream stream;
  static_cast<void>((stream << ... << args));
  return stream.str();
}

namespace detail {
[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& message);

template <typename... Args>
[[noreturn]] void check_failed_with(const char* file, int line, const char* condition, const Args&... args) {
  check_failed(file, line, condition, str_cat(args...));
}
}  // namespace detail

}  // namespace quire

// QUIRE_CHECK(condition, "what was expected ", a, " != ", b): always on; throws InternalError.
#define QUIRE_CHECK(condition, ...)                                                                  \
  do {                                                                                               \
    if (!(condition)) [[unlikely]]                                                                   \
      ::quire::detail::check_failed_with(__FILE__, __LINE__, #condition __VA_OPT__(, ) __VA_ARGS__); \
  } while (false)
