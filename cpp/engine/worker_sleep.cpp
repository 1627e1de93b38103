// The memory of a worker's models going to sleep and coming back; see worker.h and model_memory.h.
#include <utility>

#include "base/check.h"
#include "engine/worker.h"

namespace quire {

std::vector<ModelMemory*> Worker::memories() const {
  std::vector<ModelMemory*> all = {memory_.get()};
  if (draft_model_ != nullptr) all.push_back(&draft_model_->memory());
  return all;
}

bool Worker::has_weights() const { return memory_->has_weights(); }

void Worker::adopt_checkpoints(std::shared_ptr<const Checkpoint> checkpoint,
                               std::shared_ptr<const Checkpoint> draft_checkpoint) {
  if (device_->is_asynchronous()) return;  // their weights are copied, not read again
  if (draft_model_ != nullptr) draft_model_->adopt_checkpoint(std::move(draft_checkpoint));
  const auto pack = [this](const Checkpoint& again) {
    load_weights(config_.model.arch, again, *device_, weights_, {.packed = packed_.get()});
  };
  if (checkpoint != nullptr) memory_->set_source(ModelMemory::Source::of_files(std::move(checkpoint), pack));
}

void Worker::sleep(bool weights, bool kv_cache, bool keep_weights) {
  if (!weights && !kv_cache) return;
  step_scope_.reset();
  // Copies of offloaded layers in captured steps begin where their memory is now.
  if (weights && !keep_weights && offloaded_ != nullptr) graphs_.clear();
  cache_sleeps_ = cache_sleeps_ || kv_cache;
  if (weights && !(keep_weights && memory_->has_weights())) weight_state_.forget();
  for (ModelMemory* memory : memories()) {
    // Nobody can load others into a draft model, so its weights are kept.
    memory->sleep({.weights = weights, .kv_cache = kv_cache, .workspace = true},
                  keep_weights || memory != memory_.get());
  }
}

void Worker::wake(bool weights, bool kv_cache) {
  const bool all = (weights || memory_->weights_resident()) && (kv_cache || !cache_sleeps_);
  const ModelMemory::Which which = {.weights = weights, .kv_cache = kv_cache, .workspace = all};
  try {
    for (ModelMemory* memory : memories()) memory->claim(which);
    for (ModelMemory* memory : memories()) memory->wake(which);
  } catch (...) {
    for (ModelMemory* memory : memories()) memory->release_claimed();
    throw;
  }
  cache_sleeps_ = cache_sleeps_ && !kv_cache;
}

}  // namespace quire
