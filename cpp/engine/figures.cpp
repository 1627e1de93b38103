// Buckets and their contents; see figures.h.
#include "engine/figures.h"

#include <algorithm>
#include <utility>

namespace quire {

std::vector<double> round_numbers(int64_t most) {
  std::vector<double> bounds;
  for (int64_t power = 1; power <= most; power *= 10) {
    for (const int64_t digit : {1, 2, 5}) {
      if (digit * power <= most) bounds.push_back(static_cast<double>(digit * power));
    }
  }
  return bounds;
}

const std::vector<double>& latency_bounds() {
  static const std::vector<double> bounds = {0.3,  0.5,  0.8,  1.0,  1.5,  2.0,   2.5,   5.0,   10.0,   15.0,  20.0,
                                             30.0, 40.0, 50.0, 60.0, 120., 240.0, 480.0, 960.0, 1920.0, 7680.0};
  return bounds;
}

Metric histogram(const char* name, std::vector<double> bounds) {
  Metric metric{.name = name, .type = Metric::Type::histogram, .bounds = std::move(bounds)};
  metric.values.assign(metric.bounds.size() + 1, 0.0);
  return metric;
}

Metric step_tokens_histogram() {
  return histogram("vllm:iteration_tokens_total", {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384});
}

Metric single(const char* name, Metric::Type type, double value) {
  return {.name = name, .type = type, .value = value};
}

void observe(Metric& metric, double value) {
  const auto bucket = std::ranges::lower_bound(metric.bounds, value) - metric.bounds.begin();
  metric.values[static_cast<size_t>(bucket)] += 1.0;
  metric.value += value;
}

void add_finished_counters(const FinishedCounts& finished, std::vector<Metric>& metrics) {
  constexpr std::array<const char*, 5> kReasons = {"", "stop", "length", "abort", "error"};
  for (size_t reason = 1; reason < kReasons.size(); ++reason) {
    Metric metric = single("vllm:request_success", Metric::Type::counter, static_cast<double>(finished[reason]));
    metric.label = {"finished_reason", kReasons[reason]};
    metrics.push_back(std::move(metric));
  }
}

}  // namespace quire
