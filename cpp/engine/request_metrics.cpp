// Names, buckets and sums; see request_metrics.h.
#include "engine/request_metrics.h"

#include <utility>

namespace quire {
namespace {

const std::vector<double> kFirstTokenBounds = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,  0.25, 0.5,   0.75,
                                               1.0,   2.5,   5.0,  7.5,  10.0, 20.0, 40.0, 80.0, 160., 640.0, 2560.0};
const std::vector<double> kTokenTimeBounds = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,  0.3,  0.4, 0.5,
                                              0.75, 1.0,   2.5,  5.0,   7.5, 10.0, 20.0, 40.0, 80.0};

}  // namespace

RequestMetrics::RequestMetrics(int64_t max_model_len) {
  const std::vector<double> lengths = round_numbers(max_model_len);
  histograms_[kIterationTokens] = step_tokens_histogram();
  histograms_[kPromptTokens] = histogram("vllm:request_prompt_tokens", lengths);
  histograms_[kGenerationTokens] = histogram("vllm:request_generation_tokens", lengths);
  histograms_[kMaxTokens] = histogram("vllm:request_params_max_tokens", lengths);
  histograms_[kSequences] = histogram("vllm:request_params_n", {1, 2, 5, 10, 20});
  histograms_[kTimeToFirstToken] = histogram("vllm:time_to_first_token_seconds", kFirstTokenBounds);
  histograms_[kInterTokenLatency] = histogram("vllm:inter_token_latency_seconds", kTokenTimeBounds);
  histograms_[kTimePerOutputToken] = histogram("vllm:request_time_per_output_token_seconds", kTokenTimeBounds);
  histograms_[kLatency] = histogram("vllm:e2e_request_latency_seconds", latency_bounds());
  histograms_[kQueueTime] = histogram("vllm:request_queue_time_seconds", latency_bounds());
  histograms_[kInferenceTime] = histogram("vllm:request_inference_time_seconds", latency_bounds());
  histograms_[kPrefillTime] = histogram("vllm:request_prefill_time_seconds", latency_bounds());
  histograms_[kDecodeTime] = histogram("vllm:request_decode_time_seconds", latency_bounds());
}

void RequestMetrics::observe(Figure figure, double value) { quire::observe(histograms_[figure], value); }

void RequestMetrics::add_step(int64_t num_tokens) { observe(kIterationTokens, static_cast<double>(num_tokens)); }

void RequestMetrics::add_token_gap(double seconds) { observe(kInterTokenLatency, seconds); }

void RequestMetrics::add_finished(const RequestOutput& output, const SamplingParams& params) {
  int64_t num_tokens = 0;
  for (const Completion& completion : output.completions) num_tokens += std::ssize(completion.token_ids);
  if (!output.completions.empty()) ++finished_[static_cast<size_t>(output.completions.front().finish_reason)];
  observe(kPromptTokens, static_cast<double>(output.num_prompt_tokens));
  observe(kGenerationTokens, static_cast<double>(num_tokens));
  observe(kSequences, params.n);
  if (params.max_tokens.has_value()) observe(kMaxTokens, *params.max_tokens);
  const RequestTimes& times = output.times;
  observe(kLatency, times.finished - times.arrival);
  const auto& accepted = output.spec_token_acceptance_counts;  // the first one counts what was sampled anyway
  if (accepted.size() > accepted_by_position_.size() + 1) accepted_by_position_.resize(accepted.size() - 1);
  for (size_t i = 1; i < accepted.size(); ++i) accepted_by_position_[i - 1] += static_cast<double>(accepted[i]);
  if (times.first_scheduled == 0.0) return;  // cancelled while it waited
  observe(kQueueTime, times.first_scheduled - times.arrival);
  if (times.first_token == 0.0) return;
  observe(kTimeToFirstToken, times.first_token - times.arrival);
  observe(kInferenceTime, times.last_token - times.first_scheduled);
  observe(kPrefillTime, times.first_token - times.first_scheduled);
  observe(kDecodeTime, times.last_token - times.first_token);
  if (num_tokens > 1) {
    observe(kTimePerOutputToken, (times.last_token - times.first_token) / static_cast<double>(num_tokens - 1));
  }
}

std::vector<Metric> RequestMetrics::metrics(const Stats& stats) const {
  using Type = Metric::Type;
  const auto number = [](int64_t count) { return static_cast<double>(count); };
  const double used = stats.num_blocks == 0
                          ? 0.0
                          : 1.0 - number(stats.num_free_blocks + stats.num_cached_blocks) / number(stats.num_blocks);
  std::vector<Metric> all = {
      single("vllm:num_requests_running", Type::gauge, number(stats.num_running)),
      single("vllm:num_requests_waiting", Type::gauge, number(stats.num_waiting)),
      single("vllm:kv_cache_usage_perc", Type::gauge, used),
      single("vllm:gpu_cache_usage_perc", Type::gauge, used),
      single("vllm:prefix_cache_queries", Type::counter, number(stats.prefix_cache_queries)),
      single("vllm:prefix_cache_hits", Type::counter, number(stats.prefix_cache_hits)),
      single("vllm:num_preemptions", Type::counter, number(stats.num_preemptions)),
      single("vllm:prompt_tokens", Type::counter, number(stats.prompt_tokens)),
      single("vllm:generation_tokens", Type::counter, number(stats.generated_tokens)),
      single("vllm:spec_decode_num_draft_tokens", Type::counter, number(stats.num_draft_tokens)),
      single("vllm:spec_decode_num_accepted_tokens", Type::counter, number(stats.num_accepted_tokens)),
  };
  add_finished_counters(finished_, all);
  if (!accepted_by_position_.empty()) {
    all.push_back({.name = "vllm:spec_decode_num_accepted_tokens_per_pos",
                   .type = Type::vector,
                   .values = accepted_by_position_});
  }
  all.insert(all.end(), histograms_.begin(), histograms_.end());
  all.push_back(histograms_[kInterTokenLatency]);
  all.back().name = "vllm:time_per_output_token_seconds";  // its older name
  return all;
}

}  // namespace quire
