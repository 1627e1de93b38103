// The step and the life of a request; see engine.h.
#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/hash.h"
#include "engine/validation.h"

namespace quire {
namespace {

double epoch_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

Engine::Engine(EngineConfig config, std::unique_ptr<Device> device, const Checkpoint* checkpoint)
    : config_(std::move(config)), worker_(config_, std::move(device)), scheduler_(config_.scheduler) {
  worker_.load(checkpoint);
}

bool Engine::step() {
  scheduler_.plan(batch_);
  if (batch_.empty()) {
    hand_out_finished(epoch_seconds());  // cancelled while nothing ran
    return false;
  }
  stamp_first_scheduled();
  worker_.upload(batch_);
  worker_.forward();
  begin_sampling();
  worker_.sample(sampling_);
  const SampledTokens& sampled = worker_.fetch();
  const double now = epoch_seconds();
  record_tokens(sampled, now);
  scheduler_.commit(batch_, sampled.token_ids);
  ++totals_.num_steps;
  tell_tokens(sampled);
  hand_out_finished(now);
  return true;
}

void Engine::stamp_first_scheduled() {
  const double now = epoch_seconds();
  for (const ScheduledSequence& scheduled : scheduler_.planned()) {
    if (scheduled.sequence->num_output() > 0) continue;  // stamped when its prompt began
    RequestTimes& times = records_.at(scheduled.sequence->request->id).times;
    if (times.first_scheduled == 0.0) times.first_scheduled = now;
  }
}

void Engine::begin_sampling() {
  sampling_.clear();
  rows_.clear();
  for (int32_t i = 0; i < batch_.num_samples(); ++i) {
    const Sequence& sequence = scheduler_.sampled_sequence(i);
    RequestRecord& record = records_.at(sequence.request->id);
    const auto index = static_cast<uint64_t>(sequence.index);
    // With a seed, sequence i of n draws as a request of its own with seed + i would.
    const uint64_t seed = record.seeded ? record.seed + index : hash_combine(record.seed, index);
    sampling_.add(sequence, seed, record.sequences[index].counts);
    rows_.push_back({&sequence, &record});
  }
  sampling_.finish();
}

void Engine::record_tokens(const SampledTokens& sampled, double now) {
  for (size_t i = 0; i < rows_.size(); ++i) {
    RequestRecord& record = *rows_[i].record;
    if (record.times.first_token == 0.0) record.times.first_token = now;
    record.times.last_token = now;
    const int32_t num_logprobs = sampling_.rows()[i].num_logprobs;
    if (num_logprobs < 0) continue;
    SequenceRecord& sequence = record.sequences[static_cast<size_t>(rows_[i].sequence->index)];
    const size_t begin = i * static_cast<size_t>(sampled.logprobs_stride);
    const size_t width = static_cast<size_t>(num_logprobs) + 1;
    LogprobBuffer& buffer = sequence.logprobs;
    buffer.width = static_cast<int32_t>(width);
    const auto from = static_cast<int64_t>(begin);
    const auto to = static_cast<int64_t>(begin + width);
    buffer.token_ids.insert(buffer.token_ids.end(), sampled.logprob_ids.begin() + from,
                            sampled.logprob_ids.begin() + to);
    buffer.logprobs.insert(buffer.logprobs.end(), sampled.logprobs.begin() + from, sampled.logprobs.begin() + to);
    buffer.sampled_ranks.push_back(sampled.sampled_ranks[i]);
    sequence.cumulative_logprob += static_cast<double>(sampled.logprobs[begin]);
  }
  totals_.generated_tokens += static_cast<int64_t>(rows_.size());
}

void Engine::tell_tokens(const SampledTokens& sampled) {
  for (size_t i = 0; i < rows_.size(); ++i) {
    const auto& [sequence, record] = rows_[i];
    if (record->notify != Notify::every_token || !record->callback) continue;
    Delta delta;
    delta.request_id = sequence->request->id;
    delta.index = sequence->index;
    delta.token_ids = {sampled.token_ids[i]};
    delta.finish_reason = sequence->finish_reason;
    record->callback(delta);
  }
}

void Engine::hand_out_finished(double now) {
  for (const std::shared_ptr<Request>& request : scheduler_.take_finished()) {
    const auto found = records_.find(request->id);
    QUIRE_CHECK(found != records_.end(), "request ", request->id, " finished twice");
    RequestRecord record = std::move(found->second);
    records_.erase(found);
    record.times.finished = now;
    const RequestOutput output = make_output(*request, record);
    totals_.prompt_tokens += output.num_prompt_tokens;
    totals_.cached_prompt_tokens += output.num_cached_tokens;
    if (!record.callback) continue;
    Delta delta;
    delta.request_id = request->id;
    delta.finish_reason = output.completions.front().finish_reason;
    delta.finished = &output;
    record.callback(delta);
  }
}

RequestOutput Engine::make_output(const Request& request, RequestRecord& record) const {
  RequestOutput output;
  output.request_id = request.id;
  output.num_prompt_tokens = static_cast<int64_t>(request.prompt.size());
  output.num_cached_tokens = request.num_cached_tokens;
  output.num_preemptions = request.num_preemptions;
  output.times = record.times;
  output.completions.resize(static_cast<size_t>(request.params.n));
  for (size_t i = 0; i < output.completions.size(); ++i) {
    Completion& completion = output.completions[i];
    completion.index = static_cast<int32_t>(i);
    completion.finish_reason = FinishReason::abort;  // of sequences that a cancelled request never started
    completion.logprobs = std::move(record.sequences[i].logprobs);
    completion.cumulative_logprob = record.sequences[i].cumulative_logprob;
  }
  for (const std::unique_ptr<Sequence>& sequence : request.sequences) {
    Completion& completion = output.completions[static_cast<size_t>(sequence->index)];
    const std::span<const int32_t> tokens = sequence->output();
    completion.token_ids.assign(tokens.begin(), tokens.end());
    completion.finish_reason = sequence->finish_reason;
    completion.stop_token_id = sequence->stop_token_id;
    completion.stop_string_index = sequence->stop_string_index;
  }
  return output;
}

void Engine::validate(std::span<const int32_t> prompt, const SamplingParams& params) const {
  validate_request(prompt, params,
                   {.vocab_size = config_.model.arch.vocab_size,
                    .max_model_len = config_.model.max_model_len,
                    .has_vocabulary = vocabulary_ != nullptr});
}

uint64_t Engine::submit(std::vector<int32_t> prompt, const SamplingParams& params, DeltaCallback callback,
                        Notify notify) {
  validate(prompt, params);
  auto request = std::make_unique<Request>();
  request->id = next_request_id_++;
  request->params = params;
  if (!params.ignore_eos) request->eos_token_ids = config_.model.eos_token_ids;
  const auto length = static_cast<int64_t>(prompt.size());
  const int64_t room = config_.model.max_model_len - length;
  request->max_total_tokens = length + std::min<int64_t>(room, params.max_tokens.value_or(INT32_MAX));
  request->prompt = std::move(prompt);
  request->vocabulary = vocabulary_;

  RequestRecord record;
  record.callback = std::move(callback);
  record.notify = notify;
  record.seeded = params.seed.has_value();
  record.seed = record.seeded ? static_cast<uint64_t>(*params.seed) : hash_combine(config_.options.seed, request->id);
  record.times.arrival = epoch_seconds();
  record.sequences.resize(static_cast<size_t>(params.n));
  const uint64_t id = request->id;
  records_.emplace(id, std::move(record));
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
  stats.num_free_blocks = scheduler_.num_free_blocks();
  stats.num_cached_blocks = scheduler_.num_cached_blocks();
  return stats;
}

}  // namespace quire
