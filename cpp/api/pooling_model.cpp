// Implements pooling.h: one engine behind one lock, which is recursive so that callbacks may submit and cancel.
#include <mutex>
#include <thread>
#include <utility>

#include "api/checkpoints.h"
#include "base/check.h"
#include "base/clock.h"
#include "engine/engine_config.h"
#include "engine/pooling_engine.h"
#include "model/arch_registry.h"
#include "model/sentence_transformers.h"
#include "model/token_labels.h"
#include "quire/pooling.h"

namespace quire {

struct PoolingModel::Impl {
  Impl(PoolingConfig config, std::vector<std::unique_ptr<Device>> devices, const Checkpoint* checkpoint)
      : description(describe(config, *devices.front())), engine(std::move(config), std::move(devices), checkpoint) {}

  // The configuration is resolved, and so checked, before the checkpoint is opened.
  template <typename OpenCheckpoint>
  static std::unique_ptr<Impl> load(const std::string& model_dir, const EngineOptions& options,
                                    const PoolerOptions& pooler, const OpenCheckpoint& open) {
    LapClock clock;
    std::vector<std::unique_ptr<Device>> devices = make_devices(options);
    const double device_seconds = clock.lap();
    PoolingConfig config = resolve_pooling_config(model_dir, options, pooler, *devices.front());
    const double plan_seconds = clock.lap();
    std::unique_ptr<Checkpoint> checkpoint = with_dense_weights(open(), model_dir, config.dense_folders);
    checkpoint = with_token_labels(std::move(checkpoint), config.model.arch);
    const double open_seconds = clock.lap();
    auto impl = std::make_unique<Impl>(std::move(config), std::move(devices), checkpoint.get());
    impl->engine.adopt_checkpoint(std::move(checkpoint));
    tell_start_up(device_seconds, plan_seconds, open_seconds, clock.lap(), impl->engine.weight_seconds(),
                  impl->description);
    return impl;
  }

  mutable std::recursive_mutex mutex;
  ModelInfo description;
  PoolingEngine engine;
};

PoolingModel::PoolingModel(const std::string& model_dir, const EngineOptions& options, const PoolerOptions& pooler)
    : impl_(Impl::load(model_dir, options, pooler, [&] { return open_checkpoint(model_dir, options); })) {}

PoolingModel::PoolingModel(const std::string& model_dir, const EngineOptions& options, const PoolerOptions& pooler,
                           const std::vector<ExternalTensor>& weights)
    : impl_(Impl::load(model_dir, options, pooler, [&] { return adopt_tensors(weights); })) {}

PoolingModel::~PoolingModel() = default;
PoolingModel::PoolingModel(PoolingModel&&) noexcept = default;
PoolingModel& PoolingModel::operator=(PoolingModel&&) noexcept = default;

std::vector<PoolingOutput> PoolingModel::pool(const std::vector<PoolingInput>& texts, const PoolingParams& params) {
  std::vector<PoolingOutput> outputs(texts.size());
  size_t num_finished = 0;
  std::vector<uint64_t> ids;
  {
    const std::lock_guard lock(impl_->mutex);
    // All are checked before any is queued, so that a mistake in one leaves nothing behind.
    for (size_t i = 0; i < texts.size(); ++i) {
      try {
        impl_->engine.validate(texts[i], params);
      } catch (const InvalidArgument& error) {
        throw InvalidArgument(str_cat("text ", i, ": ", error.what()));
      }
    }
    for (size_t i = 0; i < texts.size(); ++i) {
      const auto keep = [&, i](PoolingOutput&& output) {
        outputs[i] = std::move(output);
        ++num_finished;
      };
      ids.push_back(impl_->engine.submit(texts[i], params, keep));
    }
  }
  try {
    for (;;) {
      std::unique_lock lock(impl_->mutex);
      if (num_finished == texts.size()) return outputs;
      if (impl_->engine.step() || impl_->engine.can_run()) continue;
      lock.unlock();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));  // another thread put it to sleep
    }
  } catch (...) {
    // The callbacks refer to this frame: none may outlive it.
    const std::lock_guard lock(impl_->mutex);
    for (const uint64_t id : ids) impl_->engine.cancel(id);
    throw;
  }
}

uint64_t PoolingModel::submit(PoolingInput text, const PoolingParams& params, PoolingCallback on_output) {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.submit(std::move(text), params, std::move(on_output));
}

bool PoolingModel::step() {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.step();
}

bool PoolingModel::cancel(uint64_t request_id) {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.cancel(request_id);
}

void PoolingModel::check(const PoolingInput& text, const PoolingParams& params) const {
  impl_->engine.validate(text, params);  // reads the configuration alone
}

void PoolingModel::sleep(int32_t level, SleepMode mode) {
  const std::lock_guard lock(impl_->mutex);
  impl_->engine.sleep(level, mode);
}

bool PoolingModel::wake_up(const std::vector<std::string>& tags) {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.wake_up(tags);
}

bool PoolingModel::is_sleeping() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.is_sleeping();
}

uint64_t PoolingModel::load_weights(const TensorSource& next, bool atomic) {
  const std::lock_guard lock(impl_->mutex);
  impl_->engine.load_weights(adopt_source(next), atomic);
  return impl_->engine.weights_version();
}

void PoolingModel::check_weights(const std::vector<ExternalTensor>& tensors) const {
  const std::lock_guard lock(impl_->mutex);
  impl_->engine.check_weights(adopt_all(tensors));
}

uint64_t PoolingModel::reload_weights(const std::string& model_dir) {
  const std::lock_guard lock(impl_->mutex);
  const PoolingConfig& config = impl_->engine.config();
  std::unique_ptr<Checkpoint> checkpoint = model_dir.empty() ? nullptr : open_safetensors(model_dir);
  checkpoint = with_dense_weights(std::move(checkpoint), model_dir, config.dense_folders);
  checkpoint = with_token_labels(std::move(checkpoint), config.model.arch);
  impl_->engine.reload_weights(checkpoint.get());
  impl_->engine.adopt_checkpoint(std::move(checkpoint));  // sleep may read them again
  return impl_->engine.weights_version();
}

uint64_t PoolingModel::reload_weights(const std::vector<ExternalTensor>& tensors) {
  const std::lock_guard lock(impl_->mutex);
  impl_->engine.reload_weights(with_token_labels(adopt_tensors(tensors), impl_->engine.config().model.arch).get());
  return impl_->engine.weights_version();
}

uint64_t PoolingModel::weights_version() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.weights_version();
}

std::vector<WeightInfo> PoolingModel::weights() const {
  const std::lock_guard lock(impl_->mutex);
  return describe_weights(impl_->engine.weights(), impl_->engine.config().model.dtype);
}

std::vector<std::byte> PoolingModel::read_weight(const std::string& name) const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.read_weight(name);
}

std::vector<WeightInfo> PoolingModel::weights_of_rank(int32_t rank) const {
  const std::lock_guard lock(impl_->mutex);
  return describe_weights(impl_->engine.weights_of_rank(rank), impl_->engine.config().model.dtype);
}

std::vector<std::byte> PoolingModel::read_weight_of_rank(int32_t rank, const std::string& name) const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.read_weight_of_rank(rank, name);
}

uint64_t PoolingModel::load_weights_of_ranks(const std::vector<std::vector<ExternalTensor>>& parts) {
  const std::vector<std::vector<CheckpointTensor>> tensors = adopt_parts(parts);
  const std::lock_guard lock(impl_->mutex);
  impl_->engine.load_weights_of_ranks(tensors);
  return impl_->engine.weights_version();
}

PoolingStats PoolingModel::stats() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.stats();
}

std::vector<Metric> PoolingModel::metrics() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.metrics();
}

void PoolingModel::start_recording() {
  const std::lock_guard lock(impl_->mutex);
  impl_->engine.start_recording();
}

Recording PoolingModel::stop_recording() {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.stop_recording();
}

const ModelInfo& PoolingModel::info() const { return impl_->description; }

ModelInfo plan_pooling_model(const std::string& model_dir, const EngineOptions& options, const PoolerOptions& pooler) {
  const std::unique_ptr<Device> device = make_device(options);
  return describe(resolve_pooling_config(model_dir, options, pooler, *device), *device);
}

std::vector<std::string> supported_pooling_architectures() { return arch_registry().supported_pooling(); }

}  // namespace quire
