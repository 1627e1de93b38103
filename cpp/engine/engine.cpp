// The step; see engine.h. The life of a request around it is in engine_requests.cpp.
#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/clock.h"
#include "base/hash.h"
#include "engine/flag.h"
#include "engine/validation.h"

namespace quire {
namespace {

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

// Of the delta's tokens, the newest of a sequence, and of the prompt with the first ones.
void add_logprobs(const Sequence& sequence, const RequestRecord& record, Delta& delta) {
  const RequestRecord::OfSequence& own = record.sequences[static_cast<size_t>(sequence.index)];
  const auto count = static_cast<int64_t>(delta.token_ids.size());
  const bool is_first = sequence.index == 0 && sequence.num_output() == count;
  if (is_first && sequence.request->params.prompt_logprobs.has_value()) delta.prompt_logprobs = record.prompt_logprobs;
  if (own.logprobs.width == 0) return;
  const LogprobBuffer& all = own.logprobs;
  const int64_t entries = count * all.width;
  delta.logprobs = {.width = all.width,
                    .token_ids = {all.token_ids.end() - entries, all.token_ids.end()},
                    .logprobs = {all.logprobs.end() - entries, all.logprobs.end()},
                    .sampled_ranks = {all.sampled_ranks.end() - count, all.sampled_ranks.end()}};
  delta.cumulative_logprob = own.cumulative_logprob;
}

}  // namespace

Engine::Engine(EngineConfig config, std::unique_ptr<Device> device, const Checkpoint* checkpoint,
               const Checkpoint* draft_checkpoint)
    : Engine(std::move(config), one_device(std::move(device)), checkpoint, draft_checkpoint) {}

Engine::Engine(EngineConfig config, std::vector<std::unique_ptr<Device>> devices, const Checkpoint* checkpoint,
               const Checkpoint* draft_checkpoint)
    : config_(std::move(config)),
      worker_(config_, std::move(devices)),
      scheduler_(config_.scheduler),
      metrics_(config_.model.max_model_len) {
  LapClock clock;
  worker_.load(checkpoint, draft_checkpoint);
  weight_seconds_ = clock.lap();
}

// ---------------------------------------------------------------------------------------------------------- the step

bool Engine::step() {
  if (!broken_.empty()) throw DeviceError(broken_);
  if (in_hooks_) {
    throw InvalidArgument(
        "a logits processor or constraint cannot run the engine that calls it; it may submit requests");
  }
  if (!can_run()) return false;
  const Flag stepping(in_step_);
  const Stopwatch whole(totals_.step_seconds);
  const SpanScope span = timed("step");
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
    if (!worker_.usable()) {
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
  plan(step);
  if (step.batch.empty()) return false;
  const DeviceStepScope on_device = worker_.first().recorded_step(step.batch);
  prepare(step);
  try {
    if (config_.speculation.has_draft_model()) guess(step);
    const SpanScope span = timed("upload");
    worker_.upload(step.batch, step.sampling, step.prompt_rows, step.wanted_states);
  } catch (const OutOfMemory& error) {
    fail_largest(error.what());
    return false;
  }
  const SpanScope span = timed("run");
  if (step.hooks.empty()) {
    worker_.run();
  } else {
    run_hooks(step);
  }
  return true;
}

void Engine::plan(StepInFlight& step) {
  SpanScope span = timed("plan");
  scheduler_.plan(step.batch);
  if (step.batch.empty()) return;
  stamp_first_scheduled();
  span.add("num_tokens", step.batch.num_tokens());
  span.add("num_seqs", step.batch.num_seqs());
  span.add("num_samples", step.batch.num_samples());
}

void Engine::prepare(StepInFlight& step) {
  const SpanScope span = timed("prepare");
  begin_sampling(step);
  begin_prompt_logprobs(step);
  begin_states(step);
  worker_.copy_blocks(step.batch.block_copies);
}

// Masks are computed while an asynchronous device works on the forward pass; logits processors wait for it.
void Engine::run_hooks(StepInFlight& step) {
  worker_.run_forward();
  {
    const SpanScope span = timed("hooks");
    const Flag running(in_hooks_);
    step.hooks.fill_masks(step.sampling);
    step.hooks.process_logits(worker_.first(), step.sampling);
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
    const SpanScope span = timed("fetch");
    const Stopwatch waiting(wait_seconds_);
    return worker_.fetch();
  }();
  const double now = epoch_seconds();
  commit(step, sampled, now);
  const SpanScope span = timed("deliver");
  advance_beams(step, sampled);
  tell_tokens(step, sampled);
  hand_out_finished(now);
}

void Engine::commit(StepInFlight& step, const SampledTokens& sampled, double now) {
  const SpanScope span = timed("commit");
  metrics_.add_step(step.batch.num_tokens());
  if (!step.hooks.empty()) commit_hooks(step, sampled);
  record_prompt_logprobs(step, worker_.prompt_scores());
  record_prompt_states(step, worker_.state_rows());
  scheduler_.commit(step.batch, sampled.token_ids);
  record_tokens(step, sampled, now);
  record_states(step, worker_.state_rows());
  if (config_.speculation.enabled()) {
    record_drafts(step);
    propose_drafts(step);
  }
  first_step_ = (first_step_ + 1) % steps_.size();
  ++totals_.num_steps;
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
    const auto in_batch = static_cast<size_t>(step.batch.sample_seqs[static_cast<size_t>(i)]);
    const int32_t num_behind =
        step.batch.query_start[in_batch + 1] - 1 - step.batch.sample_token_rows[static_cast<size_t>(i)];
    const int32_t output_index =
        step.batch.kv_lens[in_batch] - num_behind - static_cast<int32_t>(sequence.request->prompt.size());
    // With a seed, sequence i of n draws as a request of its own with seed + i would.
    const uint64_t seed = record.seeded ? record.seed + index : hash_combine(record.seed, index);
    step.sampling.add(sequence, output_index, seed, own.counts);
    if (has_hooks(sequence.request->params)) {
      step.hooks.add(sequence, i, step.sampling.rows().size() - 1, own.constraint_state);
    }
  }
  step.sampling.finish(worker_.vocab_size());
}

// The tokens of a prompt that the step computes and that were not judged before. Only the first sequence of a request
// judges its prompt.
void Engine::begin_prompt_logprobs(StepInFlight& step) const {
  step.prompt_rows.clear();
  step.judged.clear();
  const std::span<const ScheduledSequence> planned = scheduler_.planned();
  for (size_t i = 0; i < planned.size(); ++i) {
    const Sequence& sequence = *planned[i].sequence;
    const Request& request = *sequence.request;
    if (!request.params.prompt_logprobs.has_value() || sequence.index != 0) continue;
    const auto num_prompt = static_cast<int32_t>(request.prompt.size());
    const int32_t begin = std::max(planned[i].begin, request.num_judged);
    const int32_t end = std::min(planned[i].kv_len(), num_prompt - 1);
    if (begin >= end) continue;
    for (int32_t position = begin; position < end; ++position) {
      step.prompt_rows.push_back({.token_row = step.batch.query_start[i] + position - planned[i].begin,
                                  .next_token = request.prompt[static_cast<size_t>(position) + 1],
                                  .num_logprobs = *request.params.prompt_logprobs});
    }
    step.judged.push_back({&sequence, begin + 1, end - begin});
  }
}

// There is no memory for what the step's sampling parameters bring or ask for: the request that needs most of it goes,
// and the others' step is planned again.
void Engine::fail_largest(const std::string& why) {
  constexpr size_t kEntryBytes = sizeof(int32_t) + sizeof(float);
  const size_t hidden_bytes = static_cast<size_t>(config_.model.arch.hidden) * dtype_bytes(config_.model.dtype);
  const auto needed_bytes = [&](const ScheduledSequence& scheduled) {
    const Request& request = *scheduled.sequence->request;
    const SamplingParams& params = request.params;
    const auto num_judging = params.prompt_logprobs.has_value() ? static_cast<size_t>(scheduled.num_new_tokens) : 0;
    size_t judged_bytes = num_judging * (static_cast<size_t>(params.prompt_logprobs.value_or(0)) + 1) * kEntryBytes;
    if (params.return_hidden_states) judged_bytes += static_cast<size_t>(scheduled.num_new_tokens) * hidden_bytes;
    if (!scheduled.samples) return judged_bytes;
    const size_t mask_bytes = params.constraint != nullptr ? static_cast<size_t>(worker_.vocab_size()) / 8 : 0;
    const size_t logits_bytes = params.return_logits ? static_cast<size_t>(worker_.vocab_size()) * sizeof(float) : 0;
    const size_t list_bytes =
        mask_bytes + logits_bytes + params.allowed_token_ids.size() * sizeof(int32_t) +
        params.logit_bias.size() * sizeof(TokenBias) +
        (request.record->reads_output ? scheduled.sequence->tokens.size() * sizeof(TokenCount) : 0);
    // Every row of the output is as wide as the widest.
    const auto width = static_cast<size_t>(params.logprobs.value_or(0));
    return judged_bytes + list_bytes + width * static_cast<size_t>(config_.scheduler.max_num_seqs) * kEntryBytes;
  };
  const std::span<const ScheduledSequence> planned = scheduler_.planned();
  QUIRE_CHECK(!planned.empty(), "a step without sequences needs no lists: ", why);
  Request& request = *std::ranges::max_element(planned, {}, needed_bytes)->sequence->request;
  request.record->error = str_cat("no memory for the sampling parameters of this request: ", why);
  // Steps under way before this one are lost with it, and computed again.
  worker_.abandon();
  scheduler_.abandon();
  scheduler_.cancel(request.id, FinishReason::error);
}

// Tokens that a step gives a sequence come together: time passes between steps. Those of a beam search come at its end.
void Engine::stamp_token(const Row& row, bool is_first_of_step, double now) {
  RequestRecord& record = *row.record;
  if (record.times.first_token == 0.0) record.times.first_token = now;
  record.times.last_token = now;
  if (record.beams != nullptr) return;
  double& last = record.sequences[static_cast<size_t>(row.sequence->index)].last_token;
  if (is_first_of_step && last != 0.0) metrics_.add_token_gap(now - last);
  last = now;
}

void Engine::record_tokens(StepInFlight& step, const SampledTokens& sampled, double now) {
  for (size_t i = 0; i < step.rows.size(); ++i) {
    Row& row = step.rows[i];
    row.counts = scheduler_.taken()[i] != 0;
    if (!row.counts) continue;
    RequestRecord& record = *row.record;
    stamp_token(row, i == 0 || step.rows[i - 1].sequence != row.sequence, now);
    ++totals_.generated_tokens;
    const int32_t num_logprobs = row.sequence->request->params.logprobs.value_or(-1);
    if (num_logprobs < 0 || record.beams != nullptr) continue;
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

void Engine::record_prompt_logprobs(const StepInFlight& step, const PromptScores& scores) {
  const auto stride = static_cast<size_t>(scores.stride);
  size_t row = 0;
  for (const JudgedTokens& judged : step.judged) {
    const auto count = static_cast<size_t>(judged.count), begin = row;
    row += count;
    if (judged.sequence->finished()) continue;
    LogprobBuffer& buffer = judged.sequence->request->record->prompt_logprobs;
    QUIRE_CHECK(std::ssize(buffer.sampled_ranks) == judged.first - 1, buffer.sampled_ranks.size(),
                " prompt tokens were judged, now comes token ", judged.first);
    const auto width = static_cast<size_t>(buffer.width);
    for (size_t i = begin; i < row; ++i) {
      const auto ids = scores.token_ids.subspan(i * stride, width);
      const auto logprobs = scores.logprobs.subspan(i * stride, width);
      buffer.token_ids.insert(buffer.token_ids.end(), ids.begin(), ids.end());
      buffer.logprobs.insert(buffer.logprobs.end(), logprobs.begin(), logprobs.end());
      buffer.sampled_ranks.push_back(scores.ranks[i]);
    }
  }
}

void Engine::tell_tokens(const StepInFlight& step, const SampledTokens& sampled) {
  for (size_t i = 0; i < step.rows.size();) {
    const Row& row = step.rows[i];
    // What a row that does not count points to may be gone.
    const bool tells = row.counts && row.record->notify == Notify::every_token && row.record->callback;
    Delta delta;
    for (; i < step.rows.size() && step.rows[i].sequence == row.sequence; ++i) {
      if (tells && step.rows[i].counts) delta.token_ids.push_back(sampled.token_ids[i]);
    }
    if (delta.token_ids.empty()) continue;
    delta.request_id = row.sequence->request->id;
    delta.index = row.sequence->index;
    add_logprobs(*row.sequence, *row.record, delta);
    delta.finish_reason = row.sequence->finish_reason;
    row.record->callback(delta);
  }
}

}  // namespace quire
