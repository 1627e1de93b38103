// What a step spends its time on, for whoever asks; see engine.h.
#include <algorithm>
#include <tuple>

#include "base/check.h"
#include "engine/engine.h"

namespace quire {

// Spans that have begun point to the recorder.
void Engine::require_no_step() const {
  if (in_step_) throw InvalidArgument("a callback cannot begin or end a recording; that is done between steps");
}

void Engine::start_recording() {
  require_no_step();
  if (recorder_ != nullptr) throw InvalidArgument("a recording is under way; end it with stop_recording()");
  auto recorder = std::make_unique<Recorder>();
  worker_.set_recorder(recorder.get());
  recorder_ = std::move(recorder);
}

Recording Engine::stop_recording() {
  require_no_step();
  if (recorder_ == nullptr) throw InvalidArgument("nothing is recorded; begin with start_recording()");
  worker_.set_recorder(nullptr);
  const std::unique_ptr<Recorder> recorder = std::move(recorder_);
  Recording recording = {.spans = {recorder->spans().begin(), recorder->spans().end()},
                         .num_dropped_spans = recorder->num_dropped()};
  std::ranges::stable_sort(recording.spans, {},
                           [](const Span& span) { return std::tuple(span.begin_ns, -span.duration_ns); });
  return recording;
}

}  // namespace quire
