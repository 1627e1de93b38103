// Names and sums; see pooling_metrics.h.
#include "engine/pooling_metrics.h"

namespace quire {

PoolingMetrics::PoolingMetrics(int64_t max_model_len)
    : step_tokens_(step_tokens_histogram()),
      prompt_tokens_(histogram("vllm:request_prompt_tokens", round_numbers(max_model_len))),
      latency_(histogram("vllm:e2e_request_latency_seconds", latency_bounds())),
      queue_time_(histogram("vllm:request_queue_time_seconds", latency_bounds())),
      inference_time_(histogram("vllm:request_inference_time_seconds", latency_bounds())) {}

void PoolingMetrics::add_finished(const PoolingOutput& output) {
  const FinishReason reason = output.is_cancelled ? FinishReason::abort : FinishReason::stop;
  ++finished_[static_cast<size_t>(reason)];
  observe(prompt_tokens_, static_cast<double>(output.num_prompt_tokens));
  observe(latency_, output.finished - output.arrival);
  if (output.is_cancelled) return;  // it never ran: a step ends what it begins
  observe(queue_time_, output.first_scheduled - output.arrival);
  observe(inference_time_, output.finished - output.first_scheduled);
}

std::vector<Metric> PoolingMetrics::metrics(const PoolingStats& stats) const {
  using Type = Metric::Type;
  std::vector<Metric> all = {
      single("vllm:num_requests_running", Type::gauge, static_cast<double>(stats.num_running)),
      single("vllm:num_requests_waiting", Type::gauge, static_cast<double>(stats.num_waiting)),
      single("vllm:prompt_tokens", Type::counter, static_cast<double>(stats.prompt_tokens)),
  };
  add_finished_counters(finished_, all);
  for (const Metric* one : {&step_tokens_, &prompt_tokens_, &latency_, &queue_time_, &inference_time_}) {
    all.push_back(*one);
  }
  return all;
}

}  // namespace quire
