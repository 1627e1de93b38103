// A recording of an engine's steps: from who wants one to its spans in order.
//
// Decides: that there is one at a time, and how parts of a forward pass become spans. Does not know: what the parts of
// a step are, what the device records of its kernels. Engine thread, between steps but for timed().
#pragma once

#include <memory>
#include <vector>

#include "base/recorder.h"
#include "model/ops.h"

namespace quire {

// The parts of a forward pass as spans of category "part".
class RecordedPass final : public PassObserver {
 public:
  explicit RecordedPass(Recorder& recorder) : recorder_(recorder) {}
  void begin(const char* part, int32_t layer) override;
  void end() override;

 private:
  Recorder& recorder_;
  std::vector<Span> open_;  // each lies in the one before
};

class StepRecording {
 public:
  // The time of its scope as a part of the step; nothing while nobody records.
  SpanScope timed(const char* part) const { return {recorder_.get(), "step", part}; }

  // `worker` has set_recorder(Recorder*), which throws where kernels cannot be recorded. Throws InvalidArgument while a
  // recording is under way, and stop() while none is.
  template <typename Recorded>
  void start(Recorded& worker) {
    require_none();
    auto recorder = std::make_unique<Recorder>();
    worker.set_recorder(recorder.get());
    recorder_ = std::move(recorder);
  }
  template <typename Recorded>
  Recording stop(Recorded& worker) {
    require_one();
    worker.set_recorder(nullptr);
    return take();
  }

 private:
  void require_none() const;
  void require_one() const;
  Recording take();

  std::unique_ptr<Recorder> recorder_;  // null: nobody wants to know
};

}  // namespace quire
