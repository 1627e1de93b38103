// What metrics() says of requests that ran, by the public classes: numbers that follow from what was asked.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "quire/pooling.h"
#include "quire/quire.h"

namespace quire {
namespace {

const std::string kDemo = QUIRE_DEMO_MODEL_DIR;

SamplingParams greedy(int32_t max_tokens, int32_t n = 1) {
  return {.n = n, .temperature = n == 1 ? 0.0f : 1.0f, .ignore_eos = true, .max_tokens = max_tokens};
}

// By name, without "vllm:"; a label follows behind a slash.
std::map<std::string, Metric> by_name(const std::vector<Metric>& metrics) {
  std::map<std::string, Metric> named;
  for (const Metric& metric : metrics) {
    EXPECT_EQ(metric.name.substr(0, 5), "vllm:");
    std::string name = metric.name.substr(5);
    if (!metric.label.first.empty()) name += "/" + metric.label.second;
    EXPECT_TRUE(named.emplace(name, metric).second) << name << " comes twice";
  }
  return named;
}

double count_of(const Metric& histogram) {
  EXPECT_EQ(histogram.type, Metric::Type::histogram) << histogram.name;
  EXPECT_EQ(histogram.values.size(), histogram.bounds.size() + 1) << histogram.name;
  return std::accumulate(histogram.values.begin(), histogram.values.end(), 0.0);
}

TEST(Metrics, OfRequestsThatRan) {
  LLM llm(kDemo, {.num_threads = 2});
  for (const auto& [name, metric] : by_name(llm.metrics())) EXPECT_EQ(metric.value, 0.0) << name;
  llm.generate({{300, 301, 302, 303}, {400, 401}}, greedy(4));
  const std::map<std::string, Metric> first = by_name(llm.metrics());
  EXPECT_EQ(first.at("prompt_tokens").value, 6);
  EXPECT_EQ(first.at("generation_tokens").value, 8);
  EXPECT_EQ(first.at("request_success/length").value, 2);
  EXPECT_EQ(count_of(first.at("time_to_first_token_seconds")), 2);
  const Metric& gaps = first.at("inter_token_latency_seconds");
  EXPECT_EQ(count_of(gaps), 3 + 3);
  // Of requests of one sequence, all of the time from the first token to the last lies between tokens.
  EXPECT_NEAR(gaps.value, first.at("request_decode_time_seconds").value, 1e-5);
  EXPECT_EQ(first.at("time_per_output_token_seconds").values, gaps.values);

  llm.generate({{300, 301, 302}}, greedy(3, 2));  // two sequences
  EXPECT_EQ(count_of(by_name(llm.metrics()).at("inter_token_latency_seconds")), 6 + 2 + 2);
  llm.generate({{300, 301, 302}}, greedy(1));  // one token, nothing between
  EXPECT_EQ(count_of(by_name(llm.metrics()).at("inter_token_latency_seconds")), 10);
}

TEST(Metrics, BeamSearchesHandOverNoTokensBeforeTheirEnd) {
  LLM llm(kDemo, {.num_threads = 2});
  llm.beam_search({{300, 301, 302}}, {.beam_width = 2, .max_tokens = 4, .ignore_eos = true});
  const std::map<std::string, Metric> metrics = by_name(llm.metrics());
  EXPECT_EQ(count_of(metrics.at("inter_token_latency_seconds")), 0);
  EXPECT_EQ(count_of(metrics.at("e2e_request_latency_seconds")), 1);
}

// A step that brings several tokens brings them at once.
TEST(Metrics, StepsOfSpeculationAreOneDeliveryEach) {
  LLM llm(kDemo,
          {.speculative_method = "draft_model", .num_speculative_tokens = 3, .draft_model = kDemo, .num_threads = 2});
  int64_t num_deliveries = 0, num_tokens = 0;
  llm.submit({300, 301, 302}, greedy(12), [&](const Delta& delta) {
    num_deliveries += delta.token_ids.empty() ? 0 : 1;
    num_tokens += static_cast<int64_t>(delta.token_ids.size());
  });
  while (llm.step()) {
  }
  ASSERT_EQ(num_tokens, 12);
  ASSERT_LT(num_deliveries, num_tokens) << "a model that is its own draft guesses right";
  const std::map<std::string, Metric> metrics = by_name(llm.metrics());
  EXPECT_EQ(count_of(metrics.at("inter_token_latency_seconds")), static_cast<double>(num_deliveries - 1));
  EXPECT_GT(metrics.at("spec_decode_num_accepted_tokens").value, 0);
}

TEST(Metrics, OfRequestsThatWaitEndOrAreRefused) {
  LLM llm(kDemo, {.num_threads = 1});
  EXPECT_THROW(llm.submit({}, greedy(3)), std::invalid_argument);
  EXPECT_THROW(llm.generate({{300}, {-1}}, greedy(3)), std::invalid_argument);
  for (const auto& [name, metric] : by_name(llm.metrics())) EXPECT_EQ(metric.value, 0.0) << name;
  const uint64_t early = llm.submit({300, 301}, greedy(8)), late = llm.submit({400}, greedy(8));
  EXPECT_EQ(by_name(llm.metrics()).at("num_requests_waiting").value, 2);
  EXPECT_TRUE(llm.cancel(early));
  ASSERT_TRUE(llm.step());
  ASSERT_TRUE(llm.step());
  std::map<std::string, Metric> metrics = by_name(llm.metrics());
  EXPECT_EQ(metrics.at("num_requests_running").value, 1);
  EXPECT_GT(metrics.at("kv_cache_usage_perc").value, 0);
  EXPECT_EQ(count_of(metrics.at("inter_token_latency_seconds")), 1) << "it does not wait for the end";
  EXPECT_TRUE(llm.cancel(late));
  metrics = by_name(llm.metrics());
  EXPECT_EQ(metrics.at("request_success/abort").value, 2);
  EXPECT_EQ(count_of(metrics.at("e2e_request_latency_seconds")), 2);
  EXPECT_EQ(count_of(metrics.at("request_queue_time_seconds")), 1) << "the first one was never scheduled";
  EXPECT_EQ(metrics.at("num_requests_running").value + metrics.at("num_requests_waiting").value, 0);
}

TEST(Metrics, OfPooling) {
  PoolingModel model(kDemo, {.num_threads = 2});
  for (const auto& [name, metric] : by_name(model.metrics())) EXPECT_EQ(metric.value, 0.0) << name;
  const std::vector<PoolingOutput> outputs = model.pool({{.token_ids = {300, 301, 302}}, {.token_ids = {400, 401}}});
  double latency = 0.0;
  for (const PoolingOutput& output : outputs) latency += output.finished - output.arrival;
  const uint64_t id = model.submit({.token_ids = {300}});
  EXPECT_EQ(by_name(model.metrics()).at("num_requests_waiting").value, 1);
  double cancelled = 0.0;
  const uint64_t other = model.submit({.token_ids = {300, 301}}, {}, [&](PoolingOutput&& output) {
    EXPECT_TRUE(output.is_cancelled);
    cancelled = output.finished - output.arrival;
  });
  EXPECT_TRUE(model.cancel(other));
  EXPECT_THROW(model.submit({.token_ids = {}}), std::invalid_argument);
  const std::map<std::string, Metric> metrics = by_name(model.metrics());
  EXPECT_EQ(metrics.at("prompt_tokens").value, 5);
  EXPECT_EQ(metrics.at("num_requests_running").value, 0);
  EXPECT_EQ(metrics.at("num_requests_waiting").value, 1);
  EXPECT_EQ(metrics.at("request_success/stop").value, 2);
  EXPECT_EQ(metrics.at("request_success/abort").value, 1);
  EXPECT_EQ(metrics.at("request_prompt_tokens").value, 3 + 2 + 2);
  EXPECT_EQ(metrics.at("iteration_tokens_total").value, 5);
  EXPECT_EQ(count_of(metrics.at("request_queue_time_seconds")), 2);
  EXPECT_NEAR(metrics.at("e2e_request_latency_seconds").value, latency + cancelled, 1e-5);
  EXPECT_EQ(metrics.count("generation_tokens") + metrics.count("time_to_first_token_seconds"), 0u);
  EXPECT_TRUE(model.cancel(id));
}

}  // namespace
}  // namespace quire
