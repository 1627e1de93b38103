// Texts in, pooled vectors out: plan -> upload -> forward -> pool -> fetch -> commit.
//
// Decides: request ids, when callbacks are told. A step computes whole texts and is done when it returns; nothing of a
// text stays behind. Does not know: threads (the facade serialises calls), text. The clock is read here alone.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <utility>

#include "engine/pooling_config.h"
#include "engine/pooling_group.h"
#include "engine/pooling_metrics.h"
#include "engine/pooling_queue.h"
#include "engine/sleep_state.h"
#include "engine/step_recording.h"
#include "model/weight_reader.h"

namespace quire {

class PoolingEngine {
 public:
  // A device a rank. Loads the weights: from `checkpoint`, or dummy values when it is null.
  PoolingEngine(PoolingConfig config, std::vector<std::unique_ptr<Device>> devices, const Checkpoint* checkpoint);
  // On one device.
  PoolingEngine(PoolingConfig config, std::unique_ptr<Device> device, const Checkpoint* checkpoint);

  // Throws InvalidArgument before anything is queued.
  void validate(const PoolingInput& text, const PoolingParams& params) const;
  uint64_t submit(PoolingInput text, const PoolingParams& params, PoolingCallback callback);
  // Its callback is told. False when there is no such request.
  bool cancel(uint64_t request_id);
  // One step; false when there was nothing to do. Callbacks are called at its end; they may submit and cancel. A step
  // that throws loses nothing, unless the device is broken, which each step says.
  bool step();

  // As of Engine (pooling_sleep.cpp); the KV cache that sleeps is the workspace.
  void sleep(int32_t level, SleepMode mode);
  bool wake_up(const std::vector<std::string>& tags = {});
  bool is_sleeping() const { return asleep_.any(); }
  bool can_run() const { return !asleep_.any() && workers_.has_weights(); }
  void adopt_checkpoint(const std::shared_ptr<const Checkpoint>& checkpoint) { workers_.adopt_checkpoint(checkpoint); }
  // As those of Engine. Weights may be changed while no text waits.
  void load_weights(const NextTensor& next, bool atomic);
  void check_weights(const std::vector<CheckpointTensor>& tensors) {
    check_tensors(workers_.first().weight_access(), tensors);
  }
  void reload_weights(const Checkpoint* checkpoint);
  uint64_t weights_version() const { return workers_.weights_version(); }
  std::vector<ReadableWeight> weights() { return readable_weights(workers_.first().weight_access()); }
  std::vector<std::byte> read_weight(const std::string& name);
  std::vector<ReadableWeight> weights_of_rank(int32_t rank);
  std::vector<std::byte> read_weight_of_rank(int32_t rank, const std::string& name);
  void load_weights_of_ranks(const std::vector<std::vector<CheckpointTensor>>& parts);

  // As those of Engine.
  void start_recording();
  Recording stop_recording();
  PoolingStats stats() const;
  std::vector<Metric> metrics() const { return metrics_.metrics(stats()); }
  double weight_seconds() const { return weight_seconds_; }  // of loading them
  const PoolingConfig& config() const { return config_; }

 private:
  struct Request {
    PoolingInput text;
    PoolingParams params;
    PoolingKind kind;
    PoolingCallback callback;
    PoolingOutput output;  // its id and times
  };

  PoolingKind kind_of(const PoolingParams& params) const;
  void validate_pooling(int64_t num_tokens, const PoolingParams& params) const;
  std::vector<uint64_t> plan();
  void run(const std::vector<uint64_t>& ids, PoolingKind kind);
  void compute(const std::vector<uint64_t>& ids, PoolingKind kind);
  void answer(const std::vector<uint64_t>& ids, PoolingKind kind, int64_t num_columns, double begun);
  void deliver(const std::vector<uint64_t>& ids);
  SpanScope timed(const char* part) const { return recording_.timed(part); }
  void require_can_run() const;
  void finish_requests();
  void abort_requests();
  template <typename Change>
  void change_weights(const Change& change);
  void require_whole_weights() const;
  void put_back(const std::vector<uint64_t>& ids);

  PoolingConfig config_;
  PoolingGroup workers_;
  PoolingQueue queue_;
  PoolingBatch batch_;
  std::map<uint64_t, Request> requests_;
  uint64_t next_request_id_ = 0;
  SleepState asleep_;
  bool in_step_ = false;  // the caller's callbacks may run
  bool in_weight_update_ = false;
  std::string broken_;  // what the device said; empty while it works
  PoolingStats totals_;
  PoolingMetrics metrics_;
  StepRecording recording_;
  double weight_seconds_ = 0.0;
};

}  // namespace quire
