// Which engines the calling thread is inside of, so that closing one of them is an error and not a thread that waits
// for itself.
//
// Does not know of other threads: those close() waits for. Called by every call on an engine, with or without the GIL.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <vector>

namespace quire::bind {

class InUse {
 public:
  explicit InUse(const void* engine) { engines().push_back(engine); }
  ~InUse() { engines().pop_back(); }
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;

  // Throws when a call on `engine` is under way on this thread.
  static void require_none(const void* engine) {
    if (std::ranges::find(engines(), engine) == engines().end()) return;
    throw std::runtime_error(
        "close() was called by what a call on this LLM runs (the iterator of load_weights, a logits processor, a "
        "constraint). Close it when that call has returned.");
  }

 private:
  static std::vector<const void*>& engines() {
    thread_local std::vector<const void*> engines;
    return engines;
  }
};

}  // namespace quire::bind
