// Runs a Batch on one rank: device memory, weights, KV cache and the four verbs upload, forward, sample, fetch.
//
// Knows addresses; does not know requests. Engine thread only. After load() no verb allocates device memory, except
// that sampling may ask for longer lists or more log-probabilities than before: the arena is frozen at the size that a
// dry run of the worst-case batch gave. On an asynchronous device upload and run return at once, two steps may be under
// way, and decode steps are replayed from captured graphs.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "comm/communicator.h"
#include "device/arena.h"
#include "device/device.h"
#include "engine/draft_model.h"
#include "engine/engine_config.h"
#include "engine/model_memory.h"
#include "engine/prompt_logprobs.h"
#include "engine/returned_states.h"
#include "engine/row_state.h"
#include "engine/sample_output.h"
#include "engine/sampling_batch.h"
#include "engine/staging.h"
#include "engine/step_graphs.h"
#include "engine/step_memory.h"
#include "engine/step_recording.h"
#include "model/batch.h"
#include "model/decoder.h"
#include "model/packed_copy.h"
#include "model/weight_loader.h"
#include "model/weight_update.h"

namespace quire {

class Worker {
 public:
  using Config = EngineConfig;

  // `config` is kept by reference, and so is the way to other ranks, if there are any. Reserves all regions.
  Worker(const EngineConfig& config, std::unique_ptr<Device> device, Communicator* communicator = nullptr);
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // nullptr: dummy weights. The second one: of the draft model, if the configuration has one.
  void load(const Checkpoint* checkpoint, const Checkpoint* draft_checkpoint = nullptr);

  // A batch for rows (Batch::rows) or a flat one, which of its tokens judge the next one of their prompt, and what of
  // it is wanted back. `sampling` outlives run().
  void upload(const Batch& batch, const SamplingBatch& sampling, std::span<const PromptRow> prompt_rows = {},
              const WantedStates& wanted = {});
  // Puts copies of KV blocks on the stream, in front of the step that is run next. The steps of earlier copies are
  // fetched or abandoned.
  void copy_blocks(std::span<const BlockCopy> copies);
  // Before upload(), with a draft model: the batch gets its drafts. Waits for them.
  void guess(Batch& batch, const SamplingBatch& sampling);
  // Forward and sample of the uploaded batch; what was sampled is on its way.
  void run();
  // The same in two parts, for what comes between them: logits processors and masks. Launched kernel by kernel.
  void run_forward();
  void run_sample(const SamplingBatch& sampling);
  int64_t vocab_size() const { return config_.model.arch.vocab_size; }
  // The logits of a sampled row, between the two: where they are, or in `copy` on an asynchronous device, waiting for
  // the forward pass. write_logits() brings a copy back.
  std::span<float> read_logits(int64_t sample, std::vector<float>& copy);
  void write_logits(int64_t sample, std::span<const float> logits);
  // Waits for the oldest step that was run and not fetched, and returns what was sampled; valid until the next run().
  const SampledTokens& fetch();
  // Of the step fetched last: what its prompt rows asked for.
  const PromptScores& prompt_scores() const { return *prompt_scores_; }
  const StateRows& state_rows() const { return *state_rows_; }
  // Waits for whatever is under way and forgets it; what went wrong in it is not told again.
  void abandon();

  // Sleep (worker_sleep.cpp), with nothing under way. What sleeps with the weights or the cache is the workspace too;
  // it comes back with the last of them. keep_weights: see ModelMemory::sleep; those of a draft model are kept always.
  void sleep(bool weights, bool kv_cache, bool keep_weights);
  // All or, when it throws, nothing that was asleep.
  void wake(bool weights, bool kv_cache);
  // False: they were dropped and not all were loaded since.
  bool has_weights() const;
  bool weights_resident() const { return memory_->weights_resident(); }
  // Where the weights that were loaded can be read again. Not called: what is in memory is the only copy.
  void adopt_checkpoints(std::shared_ptr<const Checkpoint> checkpoint,
                         std::shared_ptr<const Checkpoint> draft_checkpoint);
  // Somebody wrote others over the weights: what is in memory is the only copy, and sleep must keep it.
  void weights_replaced() { memory_->set_source(std::nullopt); }

  // Hidden states of all tokens of a flat batch, without sampling.
  void upload(const Batch& batch);
  void forward();
  // Logits of every token of the uploaded batch, after forward(); tests compare them with a reference.
  std::vector<float> all_logits();

  // Kernels, the parts of a run and those of its forward passes become spans; null: none any more. Meanwhile no step is
  // replayed from a graph, and graphs are kept.
  void set_recorder(Recorder* recorder);
  // On an asynchronous device that is recorded: what is put on its stream until the scope ends is for this step.
  DeviceStepScope recorded_step(const Batch& batch) const;

  // To change and to read weights, while nothing is under way.
  WeightAccess weight_access() {
    return {config_.model.arch, *device_, weights_, offloaded_.get(), weight_state_, weight_region_.get()};
  }
  // How often they were changed since load(): 0 means that they are those of the checkpoint.
  uint64_t weights_version() const { return weight_state_.version; }
  bool weights_incomplete() const { return weight_state_.is_incomplete; }

  const Device& device() const { return *device_; }
  int32_t rank() const { return config_.model.arch.shard.rank; }
  // Samples; the other ranks of a model compute their part of the logits.
  bool is_first_rank() const { return ops_.is_first_rank(); }
  size_t num_graphs() const { return graphs_.size(); }
  double capture_seconds() const { return capture_seconds_; }

 private:
  void place_workspace();
  std::vector<ModelMemory*> memories() const;
  void describe_pages();
  // The launches of a step, from its rows where it has them to the tokens of its rows.
  void launch(const StepShape& shape);
  void replay(const StepShape& bucket);
  void start_fetch();
  void upload_sampling();
  void sample(const StepShape& shape);
  void store_sampled(int64_t num_samples);

  const EngineConfig& config_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Region> weight_region_, kv_region_, workspace_region_;
  std::unique_ptr<PackedCopy> packed_;  // of the weights, on disk
  Weights weights_;
  WeightState weight_state_;
  KvCache kv_cache_;
  RopePlacement rope_;
  BatchBuffers buffers_;
  CopyBuffers copy_buffers_;
  int32_t num_page_arrays_ = 0;
  std::unique_ptr<HostBuffer> copies_;  // on their way to the device
  Arena arena_;
  Ops ops_;
  Decoder decoder_;
  std::unique_ptr<OffloadedLayers> offloaded_;  // null: all layers are on the device
  std::unique_ptr<DraftModel> draft_model_;     // null: none
  std::unique_ptr<ModelMemory> memory_;
  bool cache_sleeps_ = false;

  std::optional<RowState> rows_;                   // on an asynchronous device
  std::optional<SamplingUpload> sampling_upload_;  // there, with flat batches
  std::optional<Staging> batch_staging_;           // likewise
  SampleOutput output_;
  PromptLogprobs prompt_logprobs_;
  const PromptScores* prompt_scores_ = nullptr;
  ReturnedStates returned_states_;
  const StateRows* state_rows_ = nullptr;
  StepGraphs graphs_;
  double capture_seconds_ = 0.0;
  Recorder* recorder_ = nullptr;
  std::optional<RecordedPass> recorded_pass_;

  // Of the step in progress.
  StepShape shape_;
  bool has_rows_ = false;
  const SamplingBatch* sampling_ = nullptr;     // of flat batches
  const SamplingRow* sampling_rows_ = nullptr;  // where the kernel reads them
  DeviceBatch batch_;
  std::optional<Arena::Scope> step_scope_;
  Tensor hidden_, logits_;
};

}  // namespace quire
