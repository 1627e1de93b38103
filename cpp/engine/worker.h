// Runs a Batch on one rank: device memory, weights, KV cache and the four verbs upload, forward, sample, fetch.
//
// Knows addresses; does not know requests. Engine thread only. After load() no verb allocates device memory: the arena
// is frozen at the size that a dry run of the worst-case batch gave.
#pragma once

#include <memory>
#include <optional>

#include "device/arena.h"
#include "device/device.h"
#include "engine/engine_config.h"
#include "engine/sampling_batch.h"
#include "engine/step_memory.h"
#include "model/batch.h"
#include "model/decoder.h"
#include "model/weight_loader.h"

namespace quire {

class Worker {
 public:
  // `config` is kept by reference. Reserves all regions.
  Worker(const EngineConfig& config, std::unique_ptr<Device> device);
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // nullptr: dummy weights.
  void load(const Checkpoint* checkpoint);

  void upload(const Batch& batch);
  // Hidden states of all tokens, then logits of the rows that sample.
  void forward();
  void sample(const SamplingBatch& sampling);
  // Waits for the step and returns what was sampled; valid until the next step.
  const SampledTokens& fetch();

  // Logits of every token of the uploaded batch, after forward(); tests compare them with a reference.
  std::vector<float> all_logits();

  const Device& device() const { return *device_; }

 private:
  void place_gemm_scratch(std::byte* base);

  const EngineConfig& config_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Region> weight_region_, kv_region_, workspace_region_;
  Weights weights_;
  KvCache kv_cache_;
  RopePlacement rope_;
  BatchBuffers buffers_;
  Arena arena_;
  Ops ops_;
  Decoder decoder_;
  std::unique_ptr<OffloadedLayers> offloaded_;  // null: all layers are on the device

  // Of the step in progress.
  DeviceBatch batch_;
  std::optional<Arena::Scope> step_scope_;
  Tensor hidden_, logits_;
  SampledTokens sampled_;
};

}  // namespace quire
