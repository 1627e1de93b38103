// What figures of engines are made of: names, kinds and buckets, as vLLM has them.
//
// Decides: the bounds of buckets that figures share. Does not know: what is counted (request_metrics.h,
// pooling_metrics.h), clocks.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "quire/types.h"

namespace quire {

// 1, 2, 5, 10, ... up to `most`.
std::vector<double> round_numbers(int64_t most);
const std::vector<double>& latency_bounds();  // of whole requests, in seconds

Metric histogram(const char* name, std::vector<double> bounds);
Metric step_tokens_histogram();
Metric single(const char* name, Metric::Type type, double value);
// Into the bucket of a histogram.
void observe(Metric& metric, double value);

// How many requests ended in which way, by FinishReason; as one counter a reason.
using FinishedCounts = std::array<int64_t, 5>;
void add_finished_counters(const FinishedCounts& finished, std::vector<Metric>& metrics);

}  // namespace quire
