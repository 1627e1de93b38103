// Marks on a stream and their times; see stream_spans.h.
//
// Marks are read in the order in which they were put on the stream, each against the one before, and lie in one
// another as the calls did. An event is used again once the next one has been read against it.
#include "device/cuda/stream_spans.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <utility>

#include "base/log.h"

namespace quire {
namespace {

// Asked at each launch of a stream that somebody records, and of no other.
struct Recorded {
  std::mutex mutex;
  std::map<void*, StreamSpans*> streams;
};
Recorded& recorded() {
  static Recorded all;
  return all;
}

}  // namespace

StreamSpans::StreamSpans(std::shared_ptr<CudaContext> context, Recorder& recorder)
    : context_(std::move(context)), recorder_(recorder) {
  context_->synchronize();
  try {
    read_clocks();
  } catch (...) {
    destroy_events();
    throw;
  }
  const std::lock_guard lock(recorded().mutex);
  recorded().streams[context_->compute_stream()] = this;
}

StreamSpans::~StreamSpans() {
  {
    const std::lock_guard lock(recorded().mutex);
    recorded().streams.erase(context_->compute_stream());
  }
  destroy_events();
}

void StreamSpans::destroy_events() noexcept {
  for (const cudaEvent_t event : events_) static_cast<void>(cudaEventDestroy(event));
  static_cast<void>(cudaGetLastError());
}

// The host's clock behind an event on the idle stream, of several tries the one with the shortest wait. It is late by
// some of that, so nothing seems to run before it was launched.
void StreamSpans::read_clocks() {
  constexpr int kTries = 5;
  last_event_ = take_event();
  cudaEvent_t event = take_event();
  int64_t shortest = std::numeric_limits<int64_t>::max();
  for (int i = 0; i < kTries; ++i) {
    const int64_t begin = Recorder::now_ns();
    context_->check(cudaEventRecord(event, context_->compute_stream()), "cudaEventRecord");
    context_->check(cudaEventSynchronize(event), "cudaEventSynchronize");
    const int64_t end = Recorder::now_ns();
    if (end - begin >= shortest) continue;
    shortest = end - begin;
    now_ns_ = end;
    std::swap(event, last_event_);
  }
  last_ns_ = static_cast<double>(now_ns_);
  free_.push_back(event);
}

StreamSpans* StreamSpans::of(Stream stream) {
  const std::lock_guard lock(recorded().mutex);
  const auto found = recorded().streams.find(stream.handle);
  return found == recorded().streams.end() ? nullptr : found->second;
}

cudaEvent_t StreamSpans::take_event() {
  if (!free_.empty()) {
    const cudaEvent_t event = free_.back();
    free_.pop_back();
    return event;
  }
  context_->use();
  events_.reserve(events_.size() + 1);
  free_.reserve(events_.size() + 1);
  cudaEvent_t event = nullptr;
  context_->check_memory(cudaEventCreateWithFlags(&event, cudaEventDefault), "cudaEventCreateWithFlags", "an event");
  events_.push_back(event);
  return event;
}

// Null: there was no memory for it, or the device is broken, which the launch behind it says.
cudaEvent_t StreamSpans::put_mark() noexcept {
  if (!context_->usable()) return nullptr;
  try {
    const cudaEvent_t event = take_event();
    if (cudaEventRecord(event, context_->compute_stream()) == cudaSuccess) return event;
    static_cast<void>(cudaGetLastError());
    free_.push_back(event);
  } catch (const std::exception&) {
  }
  return nullptr;
}

void StreamSpans::begin(const Span& span) noexcept {
  const cudaEvent_t event = put_mark();
  open_.push_back(event != nullptr);
  if (event == nullptr) return recorder_.drop(1);
  marks_.push_back({event, true});
  begun_.push_back(span);
  begun_.back().on_device = true;
}

void StreamSpans::end() noexcept {
  const bool has_mark = open_.back();
  open_.pop_back();
  if (has_mark) marks_.push_back({put_mark(), false});
}

bool StreamSpans::read(cudaEvent_t event) {
  float milliseconds = 0.0f;
  const cudaError_t error = cudaEventElapsedTime(&milliseconds, last_event_, event);
  static_cast<void>(cudaGetLastError());
  if (error == cudaErrorNotReady) return false;
  if (error != cudaSuccess) throw DeviceError(cudaGetErrorString(error));
  last_ns_ += static_cast<double>(milliseconds) * 1e6;
  now_ns_ = std::max(static_cast<int64_t>(std::llround(last_ns_)), now_ns_ + 1);
  free_.push_back(last_event_);
  last_event_ = event;
  return true;
}

void StreamSpans::collect() noexcept {
  try {
    for (; !marks_.empty(); marks_.pop_front()) {
      const Mark mark = marks_.front();
      if (mark.event != nullptr && !read(mark.event)) return;
      if (mark.begins) {
        running_.push_back(begun_.front());
        running_.back().begin_ns = now_ns_;
        begun_.pop_front();
        continue;
      }
      Span& span = running_.back();
      span.duration_ns = now_ns_ - span.begin_ns;
      if (mark.event != nullptr) {
        recorder_.add(span);
      } else {
        recorder_.drop(1);
      }
      running_.pop_back();
    }
  } catch (const std::exception& error) {
    log_warning("the times of what a GPU did could not be read: ", error.what());
    give_up();
  }
}

// What is open goes on, without marks; events come back when the recording ends.
void StreamSpans::give_up() noexcept {
  recorder_.drop(static_cast<int64_t>(begun_.size() + running_.size()));
  marks_.clear();
  begun_.clear();
  running_.clear();
  open_.assign(open_.size(), false);
}

void StreamSpans::finish() noexcept {
  try {
    context_->synchronize();
    collect();
  } catch (const std::exception& error) {
    log_warning("what a GPU had under way when its recording ended is missing there: ", error.what());
  }
  give_up();
}

}  // namespace quire
