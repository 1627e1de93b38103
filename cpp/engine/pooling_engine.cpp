// The step and the life of a text; see pooling_engine.h.
#include "engine/pooling_engine.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/clock.h"
#include "engine/flag.h"
#include "engine/pooling_answer.h"

namespace quire {
namespace {

void check_ids(const std::vector<int32_t>& ids, int64_t count, const char* what) {
  for (const int32_t id : ids) {
    require(id >= 0 && id < count, str_cat(what, " ", id, " is out of vocabulary (the model has ", count, ")"));
  }
}

}  // namespace

PoolingEngine::PoolingEngine(PoolingConfig config, std::unique_ptr<Device> device, const Checkpoint* checkpoint)
    : PoolingEngine(std::move(config), one_device(std::move(device)), checkpoint) {}

PoolingEngine::PoolingEngine(PoolingConfig config, std::vector<std::unique_ptr<Device>> devices,
                             const Checkpoint* checkpoint)
    : config_(std::move(config)),
      workers_(config_, std::move(devices)),
      queue_(config_.max_num_batched_tokens, config_.max_num_seqs),
      metrics_(config_.model.max_model_len) {
  LapClock clock;
  workers_.load(checkpoint);
  weight_seconds_ = clock.lap();
}

// ---------------------------------------------------------------------------------------------------------- the step

bool PoolingEngine::step() {
  if (!broken_.empty()) throw DeviceError(broken_);
  if (!can_run() || queue_.size() == 0) return false;
  const SpanScope span = timed("step");
  const auto start = std::chrono::steady_clock::now();
  const std::vector<uint64_t> ids = plan();
  run(ids, requests_.at(ids.front()).kind);
  ++totals_.num_steps;
  totals_.num_finished += static_cast<int64_t>(ids.size());
  totals_.prompt_tokens += batch_.num_tokens();
  metrics_.add_step(batch_.num_tokens());
  totals_.step_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  deliver(ids);
  return true;
}

std::vector<uint64_t> PoolingEngine::plan() {
  SpanScope span = timed("plan");
  std::vector<uint64_t> ids = queue_.plan();
  int64_t num_tokens = 0;
  for (const uint64_t id : ids) num_tokens += std::ssize(requests_.at(id).text.token_ids);
  span.add("num_tokens", num_tokens);
  span.add("num_seqs", std::ssize(ids));
  return ids;
}

// What fails is computed again; if the device cannot, the next step says so.
void PoolingEngine::run(const std::vector<uint64_t>& ids, PoolingKind kind) {
  try {
    compute(ids, kind);
  } catch (const std::exception& error) {
    put_back(ids);
    workers_.abandon();
    if (!workers_.usable()) {
      broken_ = str_cat("the device failed and this engine can do no more work; make a new one. ", error.what());
    }
    throw;
  }
}

// upload, forward, pool, fetch, and the answers.
void PoolingEngine::compute(const std::vector<uint64_t>& ids, PoolingKind kind) {
  const double begun = epoch_seconds();
  {
    const SpanScope span = timed("upload");
    batch_.clear();
    const auto& learned = config_.model.arch.learned_positions;
    const std::optional<int32_t> uncounted = learned.has_value() ? learned->uncounted_token : std::nullopt;
    for (const uint64_t id : ids) {
      const Request& request = requests_.at(id);
      batch_.add(request.text, kind.type, config_.capacity.block_size, uncounted, request.params.num_skipped_tokens);
    }
    batch_.fill_block_tables(config_.capacity.block_size);
    workers_.upload(batch_);
  }
  const int64_t num_columns = [&] {
    const SpanScope span = timed("run");
    return workers_.run(batch_, kind.type, kind.with_head);
  }();
  answer(ids, kind, num_columns, begun);
}

void PoolingEngine::answer(const std::vector<uint64_t>& ids, PoolingKind kind, int64_t num_columns, double begun) {
  const std::span<const float> rows = [&] {
    const SpanScope span = timed("fetch");
    return workers_.fetch();
  }();
  const SpanScope span = timed("commit");
  const double now = epoch_seconds();
  for (size_t i = 0; i < ids.size(); ++i) {
    Request& request = requests_.at(ids[i]);
    const auto first = static_cast<size_t>(is_token_wise(kind.type) ? batch_.query_start[i] : static_cast<int32_t>(i));
    const size_t count = is_token_wise(kind.type) ? request.text.token_ids.size() : 1;
    const auto columns = static_cast<size_t>(num_columns);
    finish_answer(config_.model.arch.pooler, kind.type, request.params, request.text.token_ids,
                  rows.subspan(first * columns, count * columns), num_columns, request.output);
    request.output.first_scheduled = begun;
    request.output.finished = now;
  }
}

// Callbacks may submit and cancel: what they are told of is no request any more.
void PoolingEngine::deliver(const std::vector<uint64_t>& ids) {
  const SpanScope span = timed("deliver");
  std::vector<Request> finished;
  for (const uint64_t id : ids) finished.push_back(std::move(requests_.extract(id).mapped()));
  for (const Request& request : finished) metrics_.add_finished(request.output);
  const Flag stepping(in_step_);
  for (Request& request : finished) {
    if (request.callback) request.callback(std::move(request.output));
  }
}

void PoolingEngine::put_back(const std::vector<uint64_t>& ids) {
  for (const uint64_t id : ids) {
    const Request& request = requests_.at(id);
    queue_.add(id, static_cast<int64_t>(request.text.token_ids.size()), request.kind);
  }
}

// ------------------------------------------------------------------------------------------------------------ requests

PoolingKind PoolingEngine::kind_of(const PoolingParams& params) const {
  const PoolerSpec& pooler = config_.model.arch.pooler;
  PoolingType type = params.pooling_type.empty() ? pooler.type : parse_pooling_type(params.pooling_type);
  if (params.num_skipped_tokens > 0 && !is_token_wise(type)) type = PoolingType::modes;
  return {.type = type, .with_head = !params.without_head && !pooler.head.empty()};
}

void PoolingEngine::validate_pooling(int64_t num_tokens, const PoolingParams& params) const {
  const ArchSpec& arch = config_.model.arch;
  const int64_t skipped = params.num_skipped_tokens;
  require(skipped >= 0, str_cat("num_skipped_tokens must not be negative, got ", skipped));
  require(skipped == 0 || params.pooling_type.empty() || is_token_wise(parse_pooling_type(params.pooling_type)),
          "num_skipped_tokens goes with the model's own way of pooling; leave pooling_type out");
  const PoolingKind kind = kind_of(params);
  require(
      skipped < num_tokens || is_token_wise(kind.type),
      str_cat("Nothing of the prompt is left to pool: all of its ", num_tokens,
              " tokens belong to the instruction before it, which this model leaves out (include_prompt is false)"));
  if (kind.with_head) {
    const int64_t wanted = arch.pooler.head.front().inputs, given = state_columns(arch, kind.type);
    require(wanted == given, str_cat("This way of pooling gives vectors of ", given,
                                     ", but the layer behind it takes vectors of ", wanted));
  }
  require(params.dimensions >= 0, "Dimensions must be greater than 0");
  const int64_t columns = pooled_columns(arch, kind.type, kind.with_head);
  require(params.dimensions <= columns, str_cat("Dimensions must be at most ", columns,
                                                ", the size of the model's vectors, got ", params.dimensions));
}

void PoolingEngine::validate(const PoolingInput& text, const PoolingParams& params) const {
  const ArchSpec& arch = config_.model.arch;
  const auto num_tokens = static_cast<int64_t>(text.token_ids.size());
  require(num_tokens > 0, "The prompt cannot be empty");
  require(num_tokens <= config_.model.max_model_len,
          str_cat("The prompt (length ", num_tokens, ") is longer than the maximum model length of ",
                  config_.model.max_model_len,
                  ". Make sure that `max_model_len` is no smaller than the number of text tokens, or truncate it with "
                  "truncate_prompt_tokens."));
  check_ids(text.token_ids, arch.vocab_size, "Token id");
  if (!text.token_type_ids.empty()) {
    require(text.token_type_ids.size() == text.token_ids.size(),
            str_cat("token_type_ids has ", text.token_type_ids.size(), " entries for ", num_tokens, " tokens"));
    check_ids(text.token_type_ids, std::max<int64_t>(1, arch.num_token_types), "Token type id");
  }
  validate_pooling(num_tokens, params);
}

uint64_t PoolingEngine::submit(PoolingInput text, const PoolingParams& params, PoolingCallback callback) {
  validate(text, params);
  require_can_run();
  require_whole_weights();
  const uint64_t id = next_request_id_++;
  Request request = {
      .text = std::move(text), .params = params, .kind = kind_of(params), .callback = std::move(callback)};
  request.output.request_id = id;
  request.output.arrival = epoch_seconds();
  request.output.num_prompt_tokens = static_cast<int64_t>(request.text.token_ids.size());
  queue_.add(id, request.output.num_prompt_tokens, request.kind);
  requests_.emplace(id, std::move(request));
  return id;
}

bool PoolingEngine::cancel(uint64_t request_id) {
  if (!queue_.remove(request_id)) return false;
  Request request = std::move(requests_.extract(request_id).mapped());
  request.output.is_cancelled = true;
  request.output.finished = epoch_seconds();
  metrics_.add_finished(request.output);
  if (request.callback) request.callback(std::move(request.output));
  return true;
}

// Spans that have begun point to the recorder.
void PoolingEngine::start_recording() {
  if (in_step_) throw InvalidArgument("a callback cannot begin or end a recording; that is done between steps");
  recording_.start(workers_);
}

Recording PoolingEngine::stop_recording() {
  if (in_step_) throw InvalidArgument("a callback cannot begin or end a recording; that is done between steps");
  return recording_.stop(workers_);
}

PoolingStats PoolingEngine::stats() const {
  PoolingStats stats = totals_;
  stats.num_waiting = static_cast<int64_t>(queue_.size());
  stats.num_running = std::ssize(requests_) - stats.num_waiting;
  return stats;
}

}  // namespace quire
