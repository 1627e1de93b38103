// The time of day, as requests are stamped with it.
#pragma once

#include <chrono>

namespace quire {

// Seconds since 1970.
inline double epoch_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace quire
