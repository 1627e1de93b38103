// A request's way into the engine and out of it, around the steps; see engine.h.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "engine/engine.h"
#include "engine/validation.h"

namespace quire {

void Engine::hand_out_finished(double now) {
  for (const std::shared_ptr<Request>& request : scheduler_.take_finished()) {
    RequestRecord& record = *request->record;
    record.times.finished = now;
    if (record.reads_output) --num_output_readers_;
    if (record.reads_states) --num_state_readers_;
    const RequestOutput output = make_output(*request);
    totals_.prompt_tokens += output.num_prompt_tokens;
    totals_.cached_prompt_tokens += output.num_cached_tokens;
    metrics_.add_finished(output, request->params);
    if (!record.callback) continue;
    Delta delta;
    delta.request_id = request->id;
    if (!output.completions.empty()) delta.finish_reason = output.completions.front().finish_reason;
    delta.finished = &output;
    // A step under way may keep the record alive; what the callback holds goes now.
    const DeltaCallback callback = std::move(record.callback);
    record.callback = nullptr;
    callback(delta);
  }
}

RequestOutput Engine::make_output(const Request& request) const {
  RequestRecord& record = *request.record;
  RequestOutput output;
  output.request_id = request.id;
  output.num_prompt_tokens = static_cast<int64_t>(request.prompt.size());
  output.num_cached_tokens = request.num_cached_tokens;
  output.num_preemptions = request.num_preemptions;
  output.times = record.times;
  output.error = record.error;
  output.spec_token_acceptance_counts = std::move(record.acceptance_counts);
  output.prompt_logprobs = std::move(record.prompt_logprobs);
  output.prompt_hidden_states = std::move(record.prompt_hidden_states);
  output.completions = completions(request);
  return output;
}

std::vector<Completion> Engine::completions(const Request& request) const {
  RequestRecord& record = *request.record;
  if (record.beams != nullptr) {
    if (record.beams->finished()) return record.beams->results();
    std::vector<Completion> ended(1);
    ended.front().finish_reason = request.sequences.front()->finish_reason;
    return ended;
  }
  std::vector<Completion> completions(static_cast<size_t>(request.params.n));
  for (size_t i = 0; i < completions.size(); ++i) {
    Completion& completion = completions[i];
    completion.index = static_cast<int32_t>(i);
    completion.finish_reason = FinishReason::abort;  // of sequences that a cancelled request never started
    completion.logprobs = std::move(record.sequences[i].logprobs);
    completion.hidden_states = std::move(record.sequences[i].hidden_states);
    completion.logits = std::move(record.sequences[i].logits);
    completion.cumulative_logprob = record.sequences[i].cumulative_logprob;
  }
  for (const std::unique_ptr<Sequence>& sequence : request.sequences) {
    Completion& completion = completions[static_cast<size_t>(sequence->index)];
    const std::span<const int32_t> tokens = sequence->output();
    completion.token_ids.assign(tokens.begin(), tokens.end());
    completion.finish_reason = sequence->finish_reason;
    completion.stop_token_id = sequence->stop_token_id;
    completion.stop_string_index = sequence->stop_string_index;
    completion.is_complete = sequence->is_complete;
  }
  return completions;
}

void Engine::validate(std::span<const int32_t> prompt, const SamplingParams& params, int32_t priority) const {
  if (priority != 0 && !config_.by_priority) {
    throw InvalidArgument(str_cat("Got priority ", priority, " but Priority scheduling is not enabled."));
  }
  validate_request(prompt, params, limits());
  require_whole_weights();
}

void Engine::validate(std::span<const int32_t> prompt, const BeamSearchParams& params) const {
  validate_request(prompt, params, limits());
  require_whole_weights();
}

ModelLimits Engine::limits() const {
  return {.vocab_size = config_.model.arch.vocab_size,
          .max_model_len = config_.model.max_model_len,
          .has_vocabulary = vocabulary_ != nullptr};
}

uint64_t Engine::submit(std::vector<int32_t> prompt, const SamplingParams& params, DeltaCallback callback,
                        Notify notify, int32_t priority) {
  validate(prompt, params, priority);
  std::unique_ptr<Request> request = make_request(std::move(prompt), params);
  request->priority = priority;
  if (!params.ignore_eos) request->eos_token_ids = config_.model.eos_token_ids;
  auto record = std::make_shared<RequestRecord>();
  record->callback = std::move(callback);
  record->notify = notify;
  record->seeded = params.seed.has_value();
  record->seed = record->seeded ? static_cast<uint64_t>(*params.seed) : hash_combine(config_.options.seed, request->id);
  record->changes_each_step = changes_each_step(params);
  record->reads_output = reads_output(params);
  record->speculates = config_.speculation.enabled() && !record->reads_output;
  record->reads_states = params.return_hidden_states || params.return_logits;
  if (params.prompt_logprobs.has_value()) record->prompt_logprobs.width = *params.prompt_logprobs + 1;
  return queue(std::move(request), std::move(record));
}

std::unique_ptr<Request> Engine::make_request(std::vector<int32_t> prompt, const SamplingParams& params) {
  require_can_run();
  auto request = std::make_unique<Request>();
  request->id = next_request_id_++;
  request->params = params;
  const auto length = static_cast<int64_t>(prompt.size());
  const int64_t room = config_.model.max_model_len - length;
  request->max_total_tokens = length + std::min<int64_t>(room, params.max_tokens.value_or(INT32_MAX));
  request->prompt = std::move(prompt);
  request->vocabulary = vocabulary_;
  return request;
}

uint64_t Engine::queue(std::unique_ptr<Request> request, std::shared_ptr<RequestRecord> record) {
  if (record->reads_output) ++num_output_readers_;
  if (record->reads_states) ++num_state_readers_;
  record->times.arrival = epoch_seconds();
  record->sequences.resize(static_cast<size_t>(request->params.n));
  request->record = std::move(record);
  const uint64_t id = request->id;
  scheduler_.add(std::move(request));
  return id;
}

bool Engine::cancel(uint64_t request_id) {
  if (!scheduler_.cancel(request_id)) return false;
  hand_out_finished(epoch_seconds());
  return true;
}

void Engine::set_vocabulary(std::vector<std::string> token_bytes) {
  auto vocabulary = std::make_shared<Vocabulary>();
  vocabulary->token_bytes = std::move(token_bytes);
  vocabulary_ = std::move(vocabulary);
}

Stats Engine::stats() const {
  const SchedulerStats scheduler = scheduler_.stats();
  Stats stats = totals_;
  stats.num_running = scheduler.num_running;
  stats.num_waiting = scheduler.num_waiting;
  stats.num_preemptions = scheduler.num_preemptions;
  stats.prefix_cache_queries = scheduler.prefix_cache_queries;
  stats.prefix_cache_hits = scheduler.prefix_cache_hits;
  stats.num_blocks = config_.memory.num_blocks;
  stats.host_seconds = totals_.step_seconds - wait_seconds_;
  stats.num_graphs = static_cast<int64_t>(worker_.first().num_graphs());
  stats.capture_seconds = worker_.first().capture_seconds();
  stats.num_free_blocks = scheduler_.num_free_blocks();
  stats.num_cached_blocks = scheduler_.num_cached_blocks();
  return stats;
}

}  // namespace quire
