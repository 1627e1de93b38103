// Runs the steps of a pooling engine on one rank: upload, forward, pool, fetch.
//
// Where ranks share the model, the first one pools and has the answer; the others compute their part of the forward
// pass. Knows addresses; does not know requests. Engine thread only. After load() no verb allocates device memory.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "device/arena.h"
#include "engine/model_memory.h"
#include "engine/pooling_memory.h"
#include "engine/step_recording.h"
#include "model/decoder.h"
#include "model/packed_copy.h"
#include "model/pooler.h"
#include "model/weight_loader.h"
#include "model/weight_update.h"

namespace quire {

// Whole texts, one after the other, flat. A value that is reused from step to step.
struct PoolingBatch {
  std::vector<int32_t> token_ids, token_type_ids, positions, slot_mapping;  // one entry a token
  std::vector<int32_t> query_start;                                         // num_seqs + 1 entries
  std::vector<int32_t> kv_lens, block_tables, rows;  // rows: the token of each text that is pooled
  std::vector<int64_t> num_skipped;                  // tokens of each text that the host does not pool
  int32_t block_table_stride = 0;

  void clear();
  // Adds a text; pages are given in order. `uncounted_token`: see LearnedPositions.
  void add(const PoolingInput& text, PoolingType type, int32_t block_size, std::optional<int32_t> uncounted_token,
           int64_t num_skipped_tokens);
  // After the last text.
  void fill_block_tables(int32_t block_size);

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
  int64_t num_seqs() const { return static_cast<int64_t>(kv_lens.size()); }

 private:
  int32_t num_blocks_ = 0;
};

class PoolingWorker {
 public:
  using Config = PoolingConfig;

  // `config` is kept by reference, and so is the way to other ranks, if there are any. Reserves all regions.
  PoolingWorker(const PoolingConfig& config, std::unique_ptr<Device> device, Communicator* communicator = nullptr);
  PoolingWorker(const PoolingWorker&) = delete;
  PoolingWorker& operator=(const PoolingWorker&) = delete;

  // nullptr: dummy weights.
  void load(const Checkpoint* checkpoint);
  void upload(const PoolingBatch& batch);
  // Forward and pool of the uploaded batch, which is `batch`; returns the answer's columns, of the first rank.
  int64_t run(const PoolingBatch& batch, PoolingType type, bool with_head);
  // Rows of the batch that was run, one after the other; valid until the next run(). Waits for the run; of other ranks
  // than the first there are none.
  std::span<const float> fetch();
  // Waits for whatever is under way and forgets it; what went wrong in it is not told again.
  void abandon();

  // To change and to read weights, between steps.
  WeightAccess weight_access() {
    return {config_.model.arch, *device_, weights_, nullptr, weight_state_, weight_region_.get()};
  }
  uint64_t weights_version() const { return weight_state_.version; }
  bool weights_incomplete() const { return weight_state_.is_incomplete; }

  // Kernels and the parts of a run become spans; null: none any more.
  void set_recorder(Recorder* recorder);

  const Device& device() const { return *device_; }
  int32_t rank() const { return config_.model.arch.shard.rank; }
  bool is_first_rank() const { return ops_.is_first_rank(); }
  // As of Worker; in the place of the KV cache there is the workspace.
  void adopt_checkpoint(std::shared_ptr<const Checkpoint> checkpoint);
  void sleep(bool weights, bool workspace, bool keep_weights);
  void wake(bool weights, bool workspace);
  bool has_weights() const { return memory_->has_weights(); }
  void weights_replaced() { memory_->set_source(std::nullopt); }

 private:
  Tensor pool_on_host(const PoolingBatch& batch, const Tensor& states);

  const PoolingConfig& config_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Region> weight_region_, workspace_region_;
  std::unique_ptr<PackedCopy> packed_;  // of the weights, on disk
  Weights weights_;
  WeightState weight_state_;
  PoolingBuffers buffers_;
  std::unique_ptr<ModelMemory> memory_;
  Arena arena_;
  Ops ops_;
  Decoder decoder_;
  Pooler pooler_;

  Recorder* recorder_ = nullptr;
  std::optional<RecordedPass> recorded_pass_;

  DeviceBatch batch_;
  std::optional<Arena::Scope> step_scope_;
  Tensor pooled_;
  std::vector<float> fetched_, pooled_on_host_;
};

}  // namespace quire
