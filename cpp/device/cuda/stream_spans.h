// When the parts and kernels of a stream ran, by CUDA events in front of and behind each.
//
// Decides: how an event's time becomes one of the host's clock, and what becomes of spans that cannot be timed. Does
// not know: what the spans mean. The field's profilers ask CUPTI, a library of its own, which sees single kernels.
// Events are the runtime's own way: they time what a whole launcher puts on the stream (several kernels, or none) with
// the gaps in it, and each is a command more for the host and for the stream. By the thread that launches.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "base/recorder.h"
#include "device/cuda/context.h"
#include "params/stream.h"

namespace quire {

class StreamSpans {
 public:
  // Of the compute stream, which is waited for; `recorder` is kept until finish().
  StreamSpans(std::shared_ptr<CudaContext> context, Recorder& recorder);
  // Says nothing to the recorder.
  ~StreamSpans();
  StreamSpans(const StreamSpans&) = delete;
  StreamSpans& operator=(const StreamSpans&) = delete;

  // Who records this stream; null: nobody. For launchers, which are given nothing but a stream.
  static StreamSpans* of(Stream stream);

  // A span that has no event is left out and counted as dropped.
  void begin(const Span& span) noexcept;
  void end() noexcept;
  // Spans that are over go to the recorder; waits for nothing.
  void collect() noexcept;
  // Waits for the rest. Of a device that broke it is dropped.
  void finish() noexcept;

 private:
  struct Mark {
    cudaEvent_t event = nullptr;  // null: could not be put on the stream
    bool begins = false;
  };
  void read_clocks();
  void destroy_events() noexcept;
  cudaEvent_t take_event();
  cudaEvent_t put_mark() noexcept;
  // Sets now_ns_ to the time of the event; false: it is still to come.
  bool read(cudaEvent_t event);
  void give_up() noexcept;

  std::shared_ptr<CudaContext> context_;
  Recorder& recorder_;
  std::vector<cudaEvent_t> events_, free_;  // all; those that no mark has
  std::vector<bool> open_;                  // spans that were begun and not ended: whether they have a mark
  std::deque<Mark> marks_;                  // in the order of the stream
  std::deque<Span> begun_;                  // of the marks that begin one
  std::vector<Span> running_;               // begun at now_ns_ or before, not ended

  // The host's clock and the device's are read together once. Times are then summed up from one event to the next,
  // because what lies between two is a float of milliseconds, which is coarse for long times.
  cudaEvent_t last_event_ = nullptr;
  double last_ns_ = 0.0;
  int64_t now_ns_ = 0;  // that, a nanosecond at least after the one before: what encloses a span is longer than it
};

// The span of its scope.
class StreamSpanScope {
 public:
  StreamSpanScope(StreamSpans& spans, const Span& span) : spans_(spans) { spans_.begin(span); }
  ~StreamSpanScope() { spans_.end(); }
  StreamSpanScope(const StreamSpanScope&) = delete;
  StreamSpanScope& operator=(const StreamSpanScope&) = delete;

 private:
  StreamSpans& spans_;
};

}  // namespace quire
