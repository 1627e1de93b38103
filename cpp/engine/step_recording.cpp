// Spans of forward passes, and their order; see step_recording.h.
#include "engine/step_recording.h"

#include <algorithm>
#include <tuple>

#include "base/check.h"

namespace quire {

void RecordedPass::begin(const char* part, int32_t layer) {
  Span span;
  span.category = "part";
  span.name = part;
  if (layer >= 0) span.add("layer", static_cast<double>(layer));
  if (device_ != nullptr) return device_->begin_span(span);
  span.begin_ns = Recorder::now_ns();
  open_.push_back(span);
}

void RecordedPass::end() {
  if (device_ != nullptr) return device_->end_span();
  Span& span = open_.back();
  span.duration_ns = Recorder::now_ns() - span.begin_ns;
  recorder_.add(span);
  open_.pop_back();
}

DeviceStepScope::DeviceStepScope(Device* device, int64_t num_tokens, int64_t num_seqs, int64_t num_samples)
    : device_(device) {
  if (device_ == nullptr) return;
  Span span;
  span.category = "step";
  span.name = "step";
  span.add("num_tokens", static_cast<double>(num_tokens));
  span.add("num_seqs", static_cast<double>(num_seqs));
  span.add("num_samples", static_cast<double>(num_samples));
  device_->begin_span(span);
}

void StepRecording::require_none() const {
  if (recorder_ != nullptr) throw InvalidArgument("a recording is under way; end it with stop_recording()");
}

void StepRecording::require_one() const {
  if (recorder_ == nullptr) throw InvalidArgument("nothing is recorded; begin with start_recording()");
}

Recording StepRecording::take() {
  const std::unique_ptr<Recorder> recorder = std::move(recorder_);
  Recording recording = {.spans = {recorder->spans().begin(), recorder->spans().end()},
                         .num_dropped_spans = recorder->num_dropped()};
  std::ranges::stable_sort(recording.spans, {},
                           [](const Span& span) { return std::tuple(span.begin_ns, -span.duration_ns); });
  return recording;
}

}  // namespace quire
