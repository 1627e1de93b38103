// Pooling models, embedded: embeddings, classifiers, cross-encoders and rewards.
//
//   quire::PoolingModel model("models/all-MiniLM-L6-v2");
//   std::vector<quire::PoolingOutput> outputs = model.pool({{.token_ids = ids}});   // outputs[0].data: 384 floats
//
// Token ids in, float32 vectors out. Whole texts are computed, without a KV cache; texts of one step are packed without
// padding. Threads, errors and callbacks are as in quire.h.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "quire/pooling_types.h"
#include "quire/span.h"
#include "quire/types.h"
#include "quire/version.h"

namespace quire {

class QUIRE_API PoolingModel {
 public:
  // A directory with config.json and safetensors, as saved by transformers or sentence-transformers. Of the options,
  // those of KV cache, sampling and graphs have no effect.
  explicit PoolingModel(const std::string& model_dir, const EngineOptions& options = {},
                        const PoolerOptions& pooler = {});
  // The same with the weights taken from memory, which may be freed afterwards.
  PoolingModel(const std::string& model_dir, const EngineOptions& options, const PoolerOptions& pooler,
               const std::vector<ExternalTensor>& weights);
  ~PoolingModel();
  PoolingModel(PoolingModel&&) noexcept;
  PoolingModel& operator=(PoolingModel&&) noexcept;

  // Runs all texts and returns the outputs in their order.
  std::vector<PoolingOutput> pool(const std::vector<PoolingInput>& texts, const PoolingParams& params = {});

  // Queues a text and returns its id; `on_output` is called once, inside step(), or inside cancel().
  uint64_t submit(PoolingInput text, const PoolingParams& params = {}, PoolingCallback on_output = {});
  // Computes one batch of what waits. False when nothing was left to do.
  bool step();
  bool cancel(uint64_t request_id);
  // Throws what submit() would throw, and does nothing else.
  void check(const PoolingInput& text, const PoolingParams& params) const;

  // Gives memory back, which is free on return, until wake_up(). Level 0 only stops the steps. At level 1 the weights
  // come back by themselves (from host memory on a GPU; on a CPU they are packed again from the checkpoint's files) and
  // scratch is given back; at level 2 the weights are dropped, and others have to be loaded after wake_up(). While
  // it sleeps, requests are refused with std::invalid_argument. Throws in a callback.
  void sleep(int32_t level = 1, SleepMode mode = SleepMode::abort);
  // Wakes what the tags name ("weights", "kv_cache", "scheduling"), without any all of it; true when all is awake. A
  // tag that is unknown or awake logs a warning. When it throws, what slept sleeps on.
  bool wake_up(const std::vector<std::string>& tags = {});
  bool is_sleeping() const;
  // As those of LLM.
  uint64_t load_weights(const TensorSource& next, bool atomic = true);
  void check_weights(const std::vector<ExternalTensor>& tensors) const;
  uint64_t reload_weights(const std::string& model_dir);
  uint64_t reload_weights(const std::vector<ExternalTensor>& tensors);
  uint64_t weights_version() const;
  std::vector<WeightInfo> weights() const;
  std::vector<std::byte> read_weight(const std::string& name) const;
  std::vector<WeightInfo> weights_of_rank(int32_t rank) const;
  std::vector<std::byte> read_weight_of_rank(int32_t rank, const std::string& name) const;
  uint64_t load_weights_of_ranks(const std::vector<std::vector<ExternalTensor>>& parts);

  // As those of LLM.
  void start_recording();
  Recording stop_recording();
  PoolingStats stats() const;
  std::vector<Metric> metrics() const;
  const ModelInfo& info() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// What loading `model_dir` as a pooling model would take, without loading it.
QUIRE_API ModelInfo plan_pooling_model(const std::string& model_dir, const EngineOptions& options = {},
                                       const PoolerOptions& pooler = {});
// The architectures that can be pooled and cannot generate; all others can be pooled too.
QUIRE_API std::vector<std::string> supported_pooling_architectures();

}  // namespace quire
