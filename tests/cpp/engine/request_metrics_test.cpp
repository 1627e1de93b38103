// Figures fall into vLLM's buckets, with numbers worked out by hand.
#include "engine/request_metrics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "engine/pooling_metrics.h"

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

TEST(PoolingMetrics, CountsWhatWasComputedAndWhatWasCancelled) {
  PoolingMetrics metrics(100);
  metrics.add_step(9);
  metrics.add_finished({.num_prompt_tokens = 6, .arrival = 10.0, .first_scheduled = 10.4, .finished = 11.4});
  metrics.add_finished({.num_prompt_tokens = 3, .arrival = 10.0, .first_scheduled = 12.0, .finished = 12.2});
  metrics.add_finished({.num_prompt_tokens = 50, .arrival = 10.0, .finished = 10.1, .is_cancelled = true});
  const std::vector<Metric> all = metrics.metrics({.num_running = 2, .num_waiting = 4, .prompt_tokens = 9});
  EXPECT_EQ(named(all, "vllm:num_requests_running").value, 2);
  EXPECT_EQ(named(all, "vllm:num_requests_waiting").value, 4);
  EXPECT_EQ(named(all, "vllm:prompt_tokens").value, 9);
  EXPECT_EQ(named(all, "vllm:request_success", "stop").value, 2);
  EXPECT_EQ(named(all, "vllm:request_success", "abort").value, 1);
  EXPECT_EQ(named(all, "vllm:request_success", "error").value, 0);
  EXPECT_EQ(named(all, "vllm:iteration_tokens_total").value, 9);
  const Metric prompts = named(all, "vllm:request_prompt_tokens");
  EXPECT_EQ(prompts.bounds, (std::vector<double>{1, 2, 5, 10, 20, 50, 100}));
  EXPECT_EQ(prompts.values, (std::vector<double>{0, 0, 1, 1, 0, 1, 0, 0}));
  EXPECT_NEAR(named(all, "vllm:e2e_request_latency_seconds").value, 1.4 + 2.2 + 0.1, 1e-9);
  EXPECT_NEAR(named(all, "vllm:request_queue_time_seconds").value, 0.4 + 2.0, 1e-9);
  EXPECT_NEAR(named(all, "vllm:request_inference_time_seconds").value, 1.0 + 0.2, 1e-9);
}

}  // namespace
}  // namespace quire
