// Figures fall into vLLM's buckets, with numbers worked out by hand.
#include "engine/request_metrics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace quire {
namespace {

Metric named(const std::vector<Metric>& metrics, const std::string& name, const std::string& label = {}) {
  const auto found = std::ranges::find_if(
      metrics, [&](const Metric& metric) { return metric.name == name && metric.label.second == label; });
  EXPECT_NE(found, metrics.end()) << name;
  return found == metrics.end() ? Metric() : *found;
}

TEST(RequestMetrics, TimeBetweenTokensHasTheBucketsOfVllm) {
  RequestMetrics metrics(1000);
  for (const double gap : {0.009, 0.01, 0.0101, 0.8, 80.0, 81.0}) metrics.add_token_gap(gap);
  const std::vector<Metric> all = metrics.metrics({});
  for (const char* name : {"vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"}) {
    const Metric metric = named(all, name);
    EXPECT_EQ(metric.type, Metric::Type::histogram);
    EXPECT_EQ(metric.bounds, (std::vector<double>{0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0,
                                                  2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0}));
    std::vector<double> expected(20, 0.0);
    expected[0] = 2;   // up to the bound, with it
    expected[1] = 1;   // 0.0101
    expected[11] = 1;  // 0.8
    expected[18] = 1;  // 80
    expected[19] = 1;  // beyond
    EXPECT_EQ(metric.values, expected);
    EXPECT_DOUBLE_EQ(metric.value, 0.009 + 0.01 + 0.0101 + 0.8 + 80.0 + 81.0);
  }
}

}  // namespace
}  // namespace quire
