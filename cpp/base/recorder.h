// Keeps what was done when: spans, in the order in which they ended.
//
// Decides: the clock, and how many spans are kept. Does not know: what they mean, who reads them. Whoever may record
// holds a Recorder* that is null while nobody does, so recording costs one comparison when it is off. One thread at a
// time.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <iterator>
#include <optional>

#include "quire/span.h"

namespace quire {

class Recorder {
 public:
  // Spans behind the first `max_spans` are counted only: a recording that is forgotten must not eat the memory.
  static constexpr int64_t kMaxSpans = int64_t{1} << 20;
  explicit Recorder(int64_t max_spans = kMaxSpans) : max_spans_(max_spans) {}

  static int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  void add(const Span& span) {
    if (std::ssize(spans_) < max_spans_) {
      spans_.push_back(span);
    } else {
      ++num_dropped_;
    }
  }
  // Spans that are known to have been and have no times.
  void drop(int64_t count) { num_dropped_ += count; }
  const std::deque<Span>& spans() const { return spans_; }
  int64_t num_dropped() const { return num_dropped_; }

 private:
  int64_t max_spans_;
  int64_t num_dropped_ = 0;
  std::deque<Span> spans_;
};

// The time of its scope; nothing where there is no recorder.
class SpanScope {
 public:
  SpanScope(Recorder* recorder, const char* category, const char* name) : recorder_(recorder) {
    if (recorder_ == nullptr) return;
    span_.emplace();
    span_->category = category;
    span_->name = name;
    span_->begin_ns = Recorder::now_ns();
  }
  ~SpanScope() {
    if (!span_.has_value()) return;
    span_->duration_ns = Recorder::now_ns() - span_->begin_ns;
    recorder_->add(*span_);
  }
  SpanScope(const SpanScope&) = delete;
  SpanScope& operator=(const SpanScope&) = delete;

  void add(const char* argument, int64_t number) {
    if (span_.has_value()) span_->add(argument, static_cast<double>(number));
  }

 private:
  Recorder* recorder_;
  std::optional<Span> span_;
};

}  // namespace quire
