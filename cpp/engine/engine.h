// Requests in, six verbs, deltas out: plan -> upload -> forward -> sample -> fetch -> commit.
//
// Decides: the order of the verbs, request ids and seeds, when callbacks are told. Does not know: threads (the facade
// serialises calls), text. The clock is read here and nowhere below.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "engine/engine_config.h"
#include "engine/sampling_batch.h"
#include "engine/scheduler.h"
#include "engine/worker.h"

namespace quire {

class Engine {
 public:
  // Loads the weights: from `checkpoint`, or dummy values when it is null.
  Engine(EngineConfig config, std::unique_ptr<Device> device, const Checkpoint* checkpoint);

  // Throws InvalidArgument before anything is queued.
  void validate(std::span<const int32_t> prompt, const SamplingParams& params) const;
  uint64_t submit(std::vector<int32_t> prompt, const SamplingParams& params, DeltaCallback callback, Notify notify);
  bool cancel(uint64_t request_id);
  // One step; false when there was nothing to do. Callbacks are called at its end; they may submit and cancel.
  bool step();

  void set_vocabulary(std::vector<std::string> token_bytes);
  bool reset_prefix_cache() { return scheduler_.reset_prefix_cache(); }
  Stats stats() const;
  const EngineConfig& config() const { return config_; }
  const Worker& worker() const { return worker_; }

 private:
  // What the engine keeps of a sequence beside the scheduler's view.
  struct SequenceRecord {
    TokenCounts counts;
    LogprobBuffer logprobs;
    double cumulative_logprob = 0.0;
  };
  struct RequestRecord {
    DeltaCallback callback;
    Notify notify = Notify::every_token;
    uint64_t seed = 0;
    bool seeded = false;
    RequestTimes times;
    std::vector<SequenceRecord> sequences;
  };
  // A sampled row: its sequence stays valid until finished requests are handed out.
  struct Row {
    const Sequence* sequence = nullptr;
    RequestRecord* record = nullptr;
  };

  void stamp_first_scheduled();
  void begin_sampling();
  void record_tokens(const SampledTokens& sampled, double now);
  void tell_tokens(const SampledTokens& sampled);
  void hand_out_finished(double now);
  RequestOutput make_output(const Request& request, RequestRecord& record) const;

  EngineConfig config_;
  Worker worker_;
  Scheduler scheduler_;
  std::shared_ptr<const Vocabulary> vocabulary_;
  std::unordered_map<uint64_t, RequestRecord> records_;
  uint64_t next_request_id_ = 0;

  Batch batch_;
  SamplingBatch sampling_;
  std::vector<Row> rows_;
  Stats totals_;
};

}  // namespace quire
