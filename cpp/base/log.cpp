// The one log sink of the process; see log.h.
#include "base/log.h"

#include <iostream>
#include <mutex>
#include <utility>

namespace quire {
namespace {

std::mutex& sink_mutex() {
  static std::mutex mutex;
  return mutex;
}

LogSink& current_sink() {
  static LogSink sink;
  return sink;
}

}  // namespace

void set_log_sink(LogSink sink) {
  const std::lock_guard lock(sink_mutex());
  current_sink() = std::move(sink);
}

void log_message(LogLevel level, const std::string& message) {
  LogSink sink;
  {
    const std::lock_guard lock(sink_mutex());
    sink = current_sink();
  }
  if (sink) {
    sink(level, message);  // outside the lock: the sink may log or replace the sink itself
  } else if (level >= LogLevel::warning) {
    std::cerr << "quire: " << message << '\n';
  }
}

}  // namespace quire
