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

// Adds the time of its scope.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds), start_(std::chrono::steady_clock::now()) {}
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& seconds_;
  std::chrono::steady_clock::time_point start_;
};

// True in its scope.
class Flag {
 public:
  explicit Flag(bool& flag) : flag_(flag) { flag_ = true; }
  ~Flag() { flag_ = false; }
  Flag(const Flag&) = delete;
  Flag& operator=(const Flag&) = delete;

 private:
  bool& flag_;
};

}  // namespace

Engine::Engine(EngineConfig config, std::unique_ptr<Device> device, const Checkpoint* checkpoint)
    : config_(std::move(config)), worker_(config_, std::move(device)), scheduler_(config_.scheduler) {
  worker_.load(checkpoint);
}

// ---------------------------------------------------------------------------------------------------------- the step

bool Engine::step() {
  if (!broken_.empty()) throw DeviceError(broken_);
  if (in_hooks_) {
    throw InvalidArgument(
        "a logits processor or constraint cannot run the engine that calls it; it may submit requests");
  }
  const Stopwatch whole(totals_.step_seconds);
  try {
    const size_t depth = may_run_ahead() ? Scheduler::kMaxInFlight : 1;
    while (scheduler_.num_in_flight() < depth && launch()) {
    }
    if (scheduler_.num_in_flight() == 0) {
      hand_out_finished(epoch_seconds());  // cancelled while nothing ran
      return scheduler_.has_work();
    }
    collect();
    return true;
  } catch (const std::exception& error) {
    // What was computed is computed again; if the device cannot, the next step says so.
    worker_.abandon();
    scheduler_.abandon();
    if (!worker_.device().usable()) {
      broken_ = str_cat("the device failed and this engine can do no more work; make a new one. ", error.what());
    }
    throw;
  }
}

bool Engine::may_run_ahead() const {
  return config_.scheduler.device_rows && config_.options.async_scheduling && num_output_readers_ == 0;
}

// plan, upload, forward, sample. False when there is nothing to plan now.
bool Engine::launch() {
  StepInFlight& step = steps_[(first_step_ + scheduler_.num_in_flight()) % steps_.size()];
  scheduler_.plan(step.batch);
  if (step.batch.empty()) return false;
  stamp_first_scheduled();
  begin_sampling(step);
  try {
    worker_.upload(step.batch, step.sampling);
  } catch (const OutOfMemory& error) {
    fail_largest_lists(step, error.what());
    return false;
  }
  if (step.hooks.empty()) {
    worker_.run();
  } else {
    run_hooks(step);
  }
  return true;
}

// Masks are computed while an asynchronous device works on the forward pass; logits processors wait for it.
void Engine::run_hooks(StepInFlight& step) {
  worker_.run_forward();
  {
    const Flag running(in_hooks_);
    step.hooks.fill_masks(step.sampling);
    step.hooks.process_logits(worker_);
  }
  worker_.run_sample(step.sampling);
  for (const HookedRow& row : step.hooks.rows()) {
    if (!row.error.empty()) fail(*row.sequence, row.error);
  }
}

// Constraints are told what was sampled. What they refuse is dropped with its request.
void Engine::commit_hooks(StepInFlight& step, const SampledTokens& sampled) {
  {
    const Flag running(in_hooks_);
    step.hooks.commit(sampled.token_ids);
  }
  for (const HookedRow& row : step.hooks.rows()) {
    if (!row.error.empty()) fail(*row.sequence, row.error);
  }
}

void Engine::fail(const Sequence& sequence, const std::string& why) {
  if (sequence.finished()) return;
  sequence.request->record->error = why;
  scheduler_.cancel(sequence.request->id, FinishReason::error);
}

// fetch, commit of the oldest step under way; then callbacks are told.
void Engine::collect() {
  StepInFlight& step = steps_[first_step_];
  const SampledTokens& sampled = [&]() -> const SampledTokens& {
    const Stopwatch waiting(wait_seconds_);
    return worker_.fetch();
  }();
  const double now = epoch_seconds();
  if (!step.hooks.empty()) commit_hooks(step, sampled);
  record_tokens(step, sampled, now);
  scheduler_.commit(step.batch, sampled.token_ids);
  first_step_ = (first_step_ + 1) % steps_.size();
  ++totals_.num_steps;
  tell_tokens(step, sampled);
  hand_out_finished(now);
}

void Engine::stamp_first_scheduled() {
  const double now = epoch_seconds();
  for (const ScheduledSequence& scheduled : scheduler_.planned()) {
    RequestTimes& times = scheduled.sequence->request->record->times;
    if (times.first_scheduled == 0.0) times.first_scheduled = now;
  }
}

void Engine::begin_sampling(StepInFlight& step) {
  step.sampling.clear();
  step.rows.clear();
  step.hooks.clear();
  for (int32_t i = 0; i < step.batch.num_samples(); ++i) {
    const Sequence& sequence = scheduler_.sampled_sequence(i);
    RequestRecord& record = *sequence.request->record;
    const auto index = static_cast<uint64_t>(sequence.index);
    RequestRecord::OfSequence& own = record.sequences[index];
    step.rows.push_back({&sequence, &record});
    step.sampling.count(sequence.request->params);
    const bool row_knows = sequence.row >= 0 && own.told_row_serial == sequence.row_serial;
    if (row_knows && !record.changes_each_step) continue;
    own.told_row_serial = sequence.row_serial;
    const int32_t kv_len = step.batch.kv_lens[static_cast<size_t>(step.batch.sample_seqs[static_cast<size_t>(i)])];
    const int32_t output_index = kv_len - static_cast<int32_t>(sequence.request->prompt.size());
    // With a seed, sequence i of n draws as a request of its own with seed + i would.
    const uint64_t seed = record.seeded ? record.seed + index : hash_combine(record.seed, index);
    step.sampling.add(sequence, output_index, seed, own.counts);
    if (has_hooks(sequence.request->params)) {
      step.hooks.add(sequence, i, step.sampling.rows().size() - 1, own.constraint_state);
    }
  }
  step.sampling.finish(worker_.vocab_size());
}

// There is no memory for the lists of the step's sampling parameters: the request that needs most of it goes, and the
// others' step is planned again.
void Engine::fail_largest_lists(const StepInFlight& step, const std::string& why) {
  const auto list_entries = [&](const Row& row) {
    const SamplingParams& params = row.sequence->request->params;
    const auto mask_words = static_cast<size_t>(params.constraint != nullptr ? worker_.vocab_size() / 32 : 0);
    return mask_words + params.allowed_token_ids.size() + params.logit_bias.size() + row.sequence->tokens.size();
  };
  QUIRE_CHECK(!step.rows.empty(), "a step without samples needs no lists: ", why);
  const Row& largest = *std::ranges::max_element(step.rows, {}, list_entries);
  Request& request = *largest.sequence->request;
  largest.record->error = str_cat("no memory for the sampling parameters of this request: ", why);
  // Steps under way before this one are lost with it, and computed again.
  worker_.abandon();
  scheduler_.abandon();
  scheduler_.cancel(request.id, FinishReason::error);
}

void Engine::record_tokens(StepInFlight& step, const SampledTokens& sampled, double now) {
  for (size_t i = 0; i < step.rows.size(); ++i) {
    Row& row = step.rows[i];
    row.counts = !row.sequence->finished();
    if (!row.counts) continue;
    RequestRecord& record = *row.record;
    if (record.times.first_token == 0.0) record.times.first_token = now;
    record.times.last_token = now;
    ++totals_.generated_tokens;
    const int32_t num_logprobs = row.sequence->request->params.logprobs.value_or(-1);
    if (num_logprobs < 0) continue;
    RequestRecord::OfSequence& sequence = record.sequences[static_cast<size_t>(row.sequence->index)];
    const size_t begin = i * static_cast<size_t>(sampled.logprobs_stride);
    const size_t width = static_cast<size_t>(num_logprobs) + 1;
    LogprobBuffer& buffer = sequence.logprobs;
    buffer.width = static_cast<int32_t>(width);
    const auto ids = sampled.logprob_ids.subspan(begin, width);
    const auto logprobs = sampled.logprobs.subspan(begin, width);
    buffer.token_ids.insert(buffer.token_ids.end(), ids.begin(), ids.end());
    buffer.logprobs.insert(buffer.logprobs.end(), logprobs.begin(), logprobs.end());
    buffer.sampled_ranks.push_back(sampled.sampled_ranks[i]);
    sequence.cumulative_logprob += static_cast<double>(logprobs.front());
  }
}

void Engine::tell_tokens(const StepInFlight& step, const SampledTokens& sampled) {
  for (size_t i = 0; i < step.rows.size(); ++i) {
    const Row& row = step.rows[i];
    if (!row.counts || row.record->notify != Notify::every_token || !row.record->callback) continue;
    Delta delta;
    delta.request_id = row.sequence->request->id;
    delta.index = row.sequence->index;
    delta.token_ids = {sampled.token_ids[i]};
    delta.finish_reason = row.sequence->finish_reason;
    row.record->callback(delta);
  }
}

// ---------------------------------------------------------------------------------------------------------- requests

void Engine::hand_out_finished(double now) {
  for (const std::shared_ptr<Request>& request : scheduler_.take_finished()) {
    RequestRecord& record = *request->record;
    record.times.finished = now;
    if (record.reads_output) --num_output_readers_;
    const RequestOutput output = make_output(*request);
    totals_.prompt_tokens += output.num_prompt_tokens;
    totals_.cached_prompt_tokens += output.num_cached_tokens;
    if (!record.callback) continue;
    Delta delta;
    delta.request_id = request->id;
    delta.finish_reason = output.completions.front().finish_reason;
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
    completion.is_complete = sequence->is_complete;
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

  auto record = std::make_shared<RequestRecord>();
  record->callback = std::move(callback);
  record->notify = notify;
  record->seeded = params.seed.has_value();
  record->seed = record->seeded ? static_cast<uint64_t>(*params.seed) : hash_combine(config_.options.seed, request->id);
  record->changes_each_step = changes_each_step(params);
  record->reads_output = reads_output(params);
  if (record->reads_output) ++num_output_readers_;
  record->times.arrival = epoch_seconds();
  record->sequences.resize(static_cast<size_t>(params.n));
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
  stats.num_graphs = static_cast<int64_t>(worker_.num_graphs());
  stats.capture_seconds = worker_.capture_seconds();
  stats.num_free_blocks = scheduler_.num_free_blocks();
  stats.num_cached_blocks = scheduler_.num_cached_blocks();
  return stats;
}

}  // namespace quire
