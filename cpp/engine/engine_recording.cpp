// What a step spends its time on, for whoever asks; see engine.h and step_recording.h.
#include "base/check.h"
#include "engine/engine.h"

namespace quire {

// Spans that have begun point to the recorder.
void Engine::require_no_step() const {
  if (in_step_) throw InvalidArgument("a callback cannot begin or end a recording; that is done between steps");
}

void Engine::start_recording() {
  require_no_step();
  recording_.start(worker_);
}

Recording Engine::stop_recording() {
  require_no_step();
  return recording_.stop(worker_);
}

}  // namespace quire
