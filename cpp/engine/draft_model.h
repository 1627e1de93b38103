// A smaller model that guesses what comes next: the drafts of a step. Verb: plan, behind the scheduler's.
//
// Decides: what its passes compute. Its KV cache has the blocks of the model's, so a Batch tells it where everything
// lies, and whatever the model has computed it has too: the first pass of a step takes every token that is known, each
// further one the drafts of the one before, which never leave the device in between. It draws with the noise of the
// output index that the model will draw with, so two models that agree about a token agree about the draw. Where ranks
// share the model, the first one has all of this one. Does not know: requests, ranks. Engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "device/arena.h"
#include "device/device.h"
#include "engine/engine_config.h"
#include "engine/model_memory.h"
#include "engine/sampling_batch.h"
#include "engine/staging.h"
#include "engine/step_memory.h"
#include "model/batch.h"
#include "model/decoder.h"
#include "model/packed_copy.h"
#include "model/weight_loader.h"

namespace quire {

class DraftModel {
 public:
  // `config`, `device` and `arena`, which serves both models' passes, are kept by reference.
  DraftModel(const EngineConfig& config, Device& device, Arena& arena);
  // nullptr: dummy weights.
  void load(const Checkpoint* checkpoint);
  // As of the worker.
  void adopt_checkpoint(std::shared_ptr<const Checkpoint> checkpoint);
  ModelMemory& memory() { return *memory_; }
  void set_observer(PassObserver* observer) { ops_.set_observer(observer); }

  // Its largest pass: a sequence may have one token to catch up with.
  static SchedulerOptions step_options(const SchedulerOptions& scheduler);
  // Beside weights, cache and arena.
  static size_t workspace_bytes(const ModelConfig& model, int32_t num_drafts, const SchedulerOptions& scheduler,
                                const KernelTable& kernels, bool batch_invariant);

  // Computes what the model computes in this step, and writes the drafts into the batch's tokens. `sampling` has the
  // rows of the batch's samples. Returns when the drafts are there.
  void run(Batch& batch, const SamplingBatch& sampling);

  const KvCache& kv_cache() const { return kv_cache_; }

 private:
  // A sequence of the batch in the passes of this step.
  struct Guess {
    int32_t seq = 0;
    int32_t num_drafts = 0;
    int32_t first_sample = 0;  // of its rows of logits
    int32_t begin = 0;         // first position of the first pass
    int32_t end = 0;           // behind the last known one
  };

  void list_guesses(const Batch& batch);
  size_t staged_bytes(const Batch& batch, const SamplingBatch& sampling) const;
  DeviceBatch stage_known(const Batch& batch);
  DeviceBatch stage_pass(const Batch& batch, int32_t pass, const DeviceBatch& first);
  const SamplingRow* stage_rows(const SamplingBatch& sampling);
  void launch(const DeviceBatch& batch, const SamplingRow* rows, int32_t* drafts);
  int64_t num_guessing(int32_t pass) const;

  const EngineConfig& config_;
  const ModelConfig& model_;
  Device& device_;
  std::unique_ptr<Region> weight_region_, kv_region_, workspace_region_;
  std::unique_ptr<PackedCopy> packed_;  // of the weights, on disk
  Weights weights_;
  KvCache kv_cache_;
  RopePlacement rope_;
  Ops ops_;
  Decoder decoder_;
  std::unique_ptr<ModelMemory> memory_;
  int32_t* drafts_ = nullptr;  // [num_tokens, max_num_seqs] on the device
  Staging staging_;

  // Of the step in progress.
  std::vector<Guess> guesses_;  // those with most drafts first, so that each pass takes the first of the one before
  int32_t num_passes_ = 0;
  std::vector<int32_t> order_;
  const int32_t* iota_ = nullptr;
  std::vector<DeviceBatch> passes_;
  std::vector<int32_t> host_drafts_;
};

}  // namespace quire
