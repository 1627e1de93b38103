// Log lines go to one sink that the application may replace; Python forwards it to logging.getLogger("quire").
//
// Quiet by default: the built-in sink prints warnings and errors to stderr, nothing else. Thread-safe.
#pragma once

#include <functional>
#include <string>

#include "base/check.h"

namespace quire {

enum class LogLevel { debug, info, warning, error };

using LogSink = std::function<void(LogLevel, const std::string&)>;

// An empty sink restores the built-in one.
void set_log_sink(LogSink sink);
void log_message(LogLevel level, const std::string& message);

template <typename... Args>
void log_info(const Args&... args) {
  log_message(LogLevel::info, str_cat(args...));
}

template <typename... Args>
void log_warning(const Args&... args) {
  log_message(LogLevel::warning, str_cat(args...));
}

}  // namespace quire
