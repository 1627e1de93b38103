// A recording of an engine's steps: from who wants one to its spans in order.
//
// Decides: that there is one at a time, and how parts of a forward pass become spans: by the host's clock where
// launchers wait, else on the device. Does not know: what the parts of a step are, what the device records of its
// kernels. Engine thread, between steps but for timed().
#pragma once

#include <memory>
#include <vector>

#include "base/recorder.h"
#include "device/device.h"
#include "model/ops.h"

namespace quire {

// The parts of a forward pass as spans of category "part".
class RecordedPass final : public PassObserver {
 public:
  RecordedPass(Recorder& recorder, Device& device)
      : recorder_(recorder), device_(device.is_asynchronous() ? &device : nullptr) {}
  void begin(const char* part, int32_t layer) override;
  void end() override;

 private:
  Recorder& recorder_;
  Device* device_;          // null: the host's clock will do
  std::vector<Span> open_;  // by that, each in the one before
};

// What is put on the device's stream for one step, in its scope, as a span on the device that says how large the step
// is; nothing without a device.
class DeviceStepScope {
 public:
  DeviceStepScope(Device* device, int64_t num_tokens, int64_t num_seqs, int64_t num_samples);
  ~DeviceStepScope() {
    if (device_ != nullptr) device_->end_span();
  }
  DeviceStepScope(const DeviceStepScope&) = delete;
  DeviceStepScope& operator=(const DeviceStepScope&) = delete;

 private:
  Device* device_;
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
