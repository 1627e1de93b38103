// The cold half of check.h, kept out of line so that a check costs one compare and one branch.
#include "base/check.h"

#include <cstring>

namespace quire::detail {

void check_failed(const char* file, int line, const char* condition, const std::string& message) {
  const char* name = std::strrchr(file, '/');
  throw InternalError(str_cat("quire bug: ", name != nullptr ? name + 1 : file, ":", line, ": ", condition,
                              message.empty() ? "" : ": ", message));
}

}  // namespace quire::detail
