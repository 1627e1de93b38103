// Requests in, six verbs, deltas out: plan -> upload -> forward -> sample -> fetch -> commit.
//
// Decides: the order of the verbs, request ids and seeds, when callbacks are told. On an asynchronous device the first
// four of a step come before the last two of the step before it, so the device never waits for the host; results are
// the same. With speculative decoding (speculation.cpp) a step gives a sequence several tokens. Does not know: threads
// (the facade serialises calls), text. The clock is read here and nowhere below.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "engine/beam_search.h"
#include "engine/engine_config.h"
#include "engine/hooks.h"
#include "engine/ngram_proposer.h"
#include "engine/request_metrics.h"
#include "engine/sampling_batch.h"
#include "engine/scheduler.h"
#include "engine/sleep_state.h"
#include "engine/step_recording.h"
#include "engine/validation.h"
#include "engine/worker_group.h"
#include "model/weight_reader.h"

namespace quire {

// What the engine keeps of a request beside the scheduler's view.
struct RequestRecord {
  struct OfSequence {
    TokenCounts counts;
    LogprobBuffer logprobs;
    RowBuffer hidden_states, logits;
    double cumulative_logprob = 0.0;
    double last_token = 0.0;                 // when its newest one was there
    uint32_t told_row_serial = 0;            // the row that has the sampling parameters
    std::unique_ptr<NgramProposer> ngrams;   // of a request that speculates, with that method
    std::shared_ptr<void> constraint_state;  // from SamplingParams::constraint, made when it first samples
  };
  DeltaCallback callback;
  Notify notify = Notify::every_token;
  uint64_t seed = 0;
  bool seeded = false;
  bool changes_each_step = false, reads_output = false;
  bool speculates = false;
  bool reads_states = false;               // return_hidden_states or return_logits
  std::vector<int64_t> acceptance_counts;  // RequestOutput::spec_token_acceptance_counts
  std::unique_ptr<BeamSearch> beams;       // of a beam search; sequence i of the request is slot i
  RequestTimes times;
  std::string error;
  LogprobBuffer prompt_logprobs;
  RowBuffer prompt_hidden_states;
  std::vector<OfSequence> sequences;
};

class Engine {
 public:
  // A device a rank. Loads the weights: from `checkpoint`, or dummy values when it is null; and those of a draft model.
  Engine(EngineConfig config, std::vector<std::unique_ptr<Device>> devices, const Checkpoint* checkpoint,
         const Checkpoint* draft_checkpoint = nullptr);
  Engine(EngineConfig config, std::unique_ptr<Device> device, const Checkpoint* checkpoint,
         const Checkpoint* draft_checkpoint = nullptr);

  // Throws InvalidArgument before anything is queued.
  void validate(std::span<const int32_t> prompt, const SamplingParams& params, int32_t priority = 0) const;
  void validate(std::span<const int32_t> prompt, const BeamSearchParams& params) const;
  uint64_t submit(std::vector<int32_t> prompt, const SamplingParams& params, DeltaCallback callback, Notify notify,
                  int32_t priority = 0);
  uint64_t submit_beam_search(std::vector<int32_t> prompt, const BeamSearchParams& params, DeltaCallback callback);
  bool cancel(uint64_t request_id);
  // One step; false when there was nothing to do. Callbacks are called at its end; they may submit and cancel. A step
  // that throws loses nothing: its work is done again by the next one, unless the device is broken, which each step
  // says.
  bool step();

  void set_vocabulary(std::vector<std::string> token_bytes);
  // From now on the parts of each step, and the kernels in them, are recorded; of ranks those of the first. Throws
  // NotSupported where the device cannot, InvalidArgument while that is done already and in a step.
  void start_recording();
  Recording stop_recording();
  // Gives memory back and takes no requests until wake_up(); level 0 only stops the steps. Throws in a callback.
  void sleep(int32_t level, SleepMode mode);
  // Wakes what the tags name ("weights", "kv_cache", "scheduling"), without any all; whether all is awake now.
  bool wake_up(const std::vector<std::string>& tags = {});
  bool is_sleeping() const { return asleep_.any(); }
  // Of an engine that sleeps.
  void release_kv_cache();
  // Awake, with weights. Else step() does nothing and submitting throws.
  bool can_run() const { return !asleep_.any() && worker_.has_weights(); }
  void adopt_checkpoints(std::shared_ptr<const Checkpoint> checkpoint,
                         std::shared_ptr<const Checkpoint> draft_checkpoint) {
    worker_.adopt_checkpoints(std::move(checkpoint), std::move(draft_checkpoint));
  }
  // engine_weights.cpp. Weights may be changed while no request is running or waiting, unless they sleep; cached
  // prefixes are forgotten. Throws InvalidArgument otherwise, and for tensors that do not fit, all of them at once.
  void load_weights(const NextTensor& next, bool atomic);
  void check_weights(const std::vector<CheckpointTensor>& tensors);
  void reload_weights(const Checkpoint* checkpoint);
  uint64_t weights_version() const { return worker_.weights_version(); }
  // The weights under the names of a checkpoint, and the elements of one in the model's dtype.
  std::vector<ReadableWeight> weights() { return readable_weights(worker_.first().weight_access()); }
  std::vector<std::byte> read_weight(const std::string& name);
  // Of one rank, and parts for each.
  std::vector<ReadableWeight> weights_of_rank(int32_t rank);
  std::vector<std::byte> read_weight_of_rank(int32_t rank, const std::string& name);
  void load_weights_of_ranks(const std::vector<std::vector<CheckpointTensor>>& parts);
  bool reset_prefix_cache() { return scheduler_.reset_prefix_cache(); }
  Stats stats() const;
  std::vector<Metric> metrics() const { return metrics_.metrics(stats()); }
  double weight_seconds() const { return weight_seconds_; }  // of loading them
  const EngineConfig& config() const { return config_; }
  const Worker& worker() const { return worker_.first(); }

 private:
  // A sampled row of a step under way; what it points to lives until the step is committed.
  struct Row {
    const Sequence* sequence = nullptr;
    RequestRecord* record = nullptr;
    bool counts = true;  // false: the sequence had ended before, or a draft in front of it was wrong
  };
  // Tokens [first, first + count) of a prompt, whose log-probabilities or hidden states a step under way finds.
  struct JudgedTokens {
    const Sequence* sequence = nullptr;
    int32_t first = 0, count = 0;
  };
  // A sampled row whose request wants states back; places in WantedStates, -1: not that kind.
  struct StateRow {
    size_t row = 0;
    int64_t hidden = -1, logits = -1;
  };
  struct StepInFlight {
    Batch batch;
    SamplingBatch sampling;
    std::vector<Row> rows;
    std::vector<PromptRow> prompt_rows;
    std::vector<JudgedTokens> judged;
    WantedStates wanted_states;
    std::vector<JudgedTokens> prompt_states;
    std::vector<StateRow> state_rows;
    StepHooks hooks;
  };

  bool may_run_ahead() const;
  bool launch();
  void plan(StepInFlight& step);
  void prepare(StepInFlight& step);
  void collect();
  void commit(StepInFlight& step, const SampledTokens& sampled, double now);
  void require_no_step() const;
  void require_can_run() const;
  void finish_requests();
  void abort_requests();
  void empty_cache();
  template <typename Change>
  void change_weights(const Change& change);
  void require_whole_weights() const;
  SpanScope timed(const char* part) const { return recording_.timed(part); }
  void stamp_first_scheduled();
  void begin_sampling(StepInFlight& step);
  void begin_prompt_logprobs(StepInFlight& step) const;
  void begin_states(StepInFlight& step) const;
  void fail_largest(const std::string& why);
  void guess(StepInFlight& step);
  void run_hooks(StepInFlight& step);
  void commit_hooks(StepInFlight& step, const SampledTokens& sampled);
  void fail(const Sequence& sequence, const std::string& why);
  void stamp_token(const Row& row, bool is_first_of_step, double now);
  void record_tokens(StepInFlight& step, const SampledTokens& sampled, double now);
  static void record_prompt_logprobs(const StepInFlight& step, const PromptScores& scores);
  static void record_prompt_states(const StepInFlight& step, const StateRows& states);
  static void record_states(const StepInFlight& step, const StateRows& states);
  void record_drafts(const StepInFlight& step);
  void propose_drafts(const StepInFlight& step);
  void advance_beams(const StepInFlight& step, const SampledTokens& sampled);
  void move_beams(Request& request);
  std::vector<int32_t> move_constraints(Request& request, const BeamMoves& moves);
  void tell_tokens(const StepInFlight& step, const SampledTokens& sampled);
  void hand_out_finished(double now);
  RequestOutput make_output(const Request& request) const;
  std::vector<Completion> completions(const Request& request) const;
  ModelLimits limits() const;
  std::unique_ptr<Request> make_request(std::vector<int32_t> prompt, const SamplingParams& params);
  uint64_t queue(std::unique_ptr<Request> request, std::shared_ptr<RequestRecord> record);

  EngineConfig config_;
  WorkerGroup worker_;
  Scheduler scheduler_;
  std::shared_ptr<const Vocabulary> vocabulary_;
  uint64_t next_request_id_ = 0;
  int64_t num_output_readers_ = 0;  // live requests whose next token cannot be had before the last one is known
  int64_t num_state_readers_ = 0;   // live requests that want hidden states or logits back

  std::array<StepInFlight, Scheduler::kMaxInFlight> steps_;  // a ring, oldest first
  size_t first_step_ = 0;
  bool in_step_ = false;   // the caller's callbacks may run
  bool in_hooks_ = false;  // the caller's code runs in the midst of a step
  SleepState asleep_;
  bool in_weight_update_ = false;
  std::string broken_;  // what the device said; empty while it works
  Stats totals_;
  RequestMetrics metrics_;
  double weight_seconds_ = 0.0;
  double wait_seconds_ = 0.0;
  StepRecording recording_;
};

}  // namespace quire
