// Implements quire.h: one engine behind one lock.
//
// The lock is recursive so that callbacks, which run inside step(), may submit and cancel.
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

#include "api/checkpoints.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "engine/engine.h"
#include "engine/validation.h"
#include "model/arch_registry.h"
#include "quire/quire.h"

namespace quire {

namespace {

using Devices = std::vector<std::unique_ptr<Device>>;

// The ranks of a CPU share its threads out.
ModelInfo describe_all(const EngineConfig& config, const Devices& devices) {
  ModelInfo info = describe(config, *devices.front());
  if (devices.front()->is_asynchronous()) return info;
  info.num_threads = 0;
  for (const std::unique_ptr<Device>& device : devices) info.num_threads += device->num_threads();
  return info;
}

}  // namespace

struct LLM::Impl {
  Impl(EngineConfig config, Devices devices, const Checkpoint* checkpoint, const Checkpoint* draft_checkpoint)
      : description(describe_all(config, devices)),
        engine(std::move(config), std::move(devices), checkpoint, draft_checkpoint) {}

  // The configuration is resolved, and so checked, before the checkpoint is opened.
  template <typename OpenCheckpoint>
  static std::unique_ptr<Impl> load(const std::string& model_dir, const EngineOptions& options,
                                    const OpenCheckpoint& open) {
    LapClock clock;
    Devices devices = make_devices(options);
    const double device_seconds = clock.lap();
    EngineConfig config = resolve_engine_config(model_dir, options, *devices.front());
    const double plan_seconds = clock.lap();
    const std::shared_ptr<const Checkpoint> checkpoint = open();
    std::shared_ptr<const Checkpoint> draft_checkpoint;
    if (config.speculation.has_draft_model()) draft_checkpoint = open_checkpoint(options.draft_model, options);
    const double open_seconds = clock.lap();
    auto impl = std::make_unique<Impl>(std::move(config), std::move(devices), checkpoint.get(), draft_checkpoint.get());
    impl->engine.adopt_checkpoints(checkpoint, draft_checkpoint);
    tell_start_up(device_seconds, plan_seconds, open_seconds, clock.lap(), impl->engine.weight_seconds(),
                  impl->description);
    return impl;
  }

  // Checks all, queues all, and steps until all have finished.
  template <typename Params, typename Submit>
  std::vector<RequestOutput> run_all(const std::vector<std::vector<int32_t>>& prompts, const Params& params,
                                     const Submit& submit);

  // Steps follow each other so closely that the mutex alone would let nobody in between; they give way to who asks.
  // Not for long: a callback may ask for a step, and then the mutex is its thread's already.
  std::unique_lock<std::recursive_mutex> lock_for_step() {
    for (int i = 0; i < 20 && num_asking > 0; ++i) std::this_thread::sleep_for(std::chrono::microseconds(50));
    return std::unique_lock(mutex);
  }
  std::unique_lock<std::recursive_mutex> lock_between_steps() {
    ++num_asking;
    std::unique_lock lock(mutex);
    --num_asking;
    return lock;
  }

  std::recursive_mutex mutex;
  std::atomic<int> num_asking = 0;
  ModelInfo description;
  Engine engine;
};

LLM::LLM(const std::string& model_dir, const EngineOptions& options)
    : impl_(Impl::load(model_dir, options, [&] { return open_checkpoint(model_dir, options); })) {}

LLM::LLM(const std::string& model_dir, const EngineOptions& options, const std::vector<ExternalTensor>& weights)
    : impl_(Impl::load(model_dir, options, [&] { return adopt_tensors(weights); })) {}

LLM::~LLM() = default;
LLM::LLM(LLM&&) noexcept = default;
LLM& LLM::operator=(LLM&&) noexcept = default;

namespace {

void wait_for_others(std::unique_lock<std::recursive_mutex>& lock) {
  lock.unlock();
  std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

}  // namespace

template <typename Params, typename Submit>
std::vector<RequestOutput> LLM::Impl::run_all(const std::vector<std::vector<int32_t>>& prompts, const Params& params,
                                              const Submit& submit) {
  std::vector<RequestOutput> outputs(prompts.size());
  size_t num_finished = 0;
  std::vector<uint64_t> ids;
  {
    const std::lock_guard lock(mutex);
    // All are checked before any is queued, so that a mistake in one leaves nothing behind.
    for (size_t i = 0; i < prompts.size(); ++i) {
      try {
        engine.validate(prompts[i], params);
      } catch (const InvalidArgument& error) {
        throw InvalidArgument(str_cat("prompt ", i, ": ", error.what()));
      }
    }
    for (size_t i = 0; i < prompts.size(); ++i) {
      const auto keep = [&, i](const Delta& delta) {
        if (delta.finished == nullptr) return;
        outputs[i] = *delta.finished;
        ++num_finished;
      };
      ids.push_back(submit(prompts[i], keep));
    }
  }
  try {
    for (;;) {
      std::unique_lock lock = lock_for_step();
      if (num_finished == prompts.size()) return outputs;
      const bool worked = engine.step();
      if (!worked && !engine.can_run()) wait_for_others(lock);  // that woke it up, or will
    }
  } catch (...) {
    // The callbacks refer to this frame: none may outlive it.
    const std::lock_guard lock(mutex);
    for (const uint64_t id : ids) engine.cancel(id);
    throw;
  }
}

std::vector<RequestOutput> LLM::generate(const std::vector<std::vector<int32_t>>& prompts,
                                         const SamplingParams& params) {
  return impl_->run_all(prompts, params, [&](const std::vector<int32_t>& prompt, DeltaCallback keep) {
    return impl_->engine.submit(prompt, params, std::move(keep), Notify::finished);
  });
}

std::vector<RequestOutput> LLM::beam_search(const std::vector<std::vector<int32_t>>& prompts,
                                            const BeamSearchParams& params) {
  return impl_->run_all(prompts, params, [&](const std::vector<int32_t>& prompt, DeltaCallback keep) {
    return impl_->engine.submit_beam_search(prompt, params, std::move(keep));
  });
}

uint64_t LLM::submit(std::vector<int32_t> prompt, const SamplingParams& params, DeltaCallback on_delta, Notify notify,
                     int32_t priority) {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.submit(std::move(prompt), params, std::move(on_delta), notify, priority);
}

uint64_t LLM::submit_beam_search(std::vector<int32_t> prompt, const BeamSearchParams& params, DeltaCallback on_delta) {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.submit_beam_search(std::move(prompt), params, std::move(on_delta));
}

bool LLM::step() {
  const std::unique_lock lock = impl_->lock_for_step();
  return impl_->engine.step();
}

bool LLM::cancel(uint64_t request_id) {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.cancel(request_id);
}

void LLM::check(const std::vector<int32_t>& prompt, const SamplingParams& params, int32_t priority) const {
  const std::lock_guard lock(impl_->mutex);
  impl_->engine.validate(prompt, params, priority);
}

void LLM::set_vocabulary(std::vector<std::string> token_bytes) {
  const std::lock_guard lock(impl_->mutex);
  impl_->engine.set_vocabulary(std::move(token_bytes));
}

bool LLM::reset_prefix_cache() {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.reset_prefix_cache();
}

void LLM::sleep(int32_t level, SleepMode mode) {
  const std::unique_lock lock = impl_->lock_between_steps();
  impl_->engine.sleep(level, mode);
}

bool LLM::wake_up(const std::vector<std::string>& tags) {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.wake_up(tags);
}

bool LLM::is_sleeping() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.is_sleeping();
}

void LLM::release_kv_cache_memory() {
  const std::lock_guard lock(impl_->mutex);
  impl_->engine.release_kv_cache();
}

uint64_t LLM::load_weights(const TensorSource& next, bool atomic) {
  const std::lock_guard lock(impl_->mutex);
  impl_->engine.load_weights(adopt_source(next), atomic);
  return impl_->engine.weights_version();
}

void LLM::check_weights(const std::vector<ExternalTensor>& tensors) const {
  const std::lock_guard lock(impl_->mutex);
  impl_->engine.check_weights(adopt_all(tensors));
}

uint64_t LLM::reload_weights(const std::string& model_dir) {
  const std::lock_guard lock(impl_->mutex);
  const std::shared_ptr<const Checkpoint> checkpoint = model_dir.empty() ? nullptr : open_safetensors(model_dir);
  impl_->engine.reload_weights(checkpoint.get());
  impl_->engine.adopt_checkpoints(checkpoint, nullptr);  // sleep may read them again
  return impl_->engine.weights_version();
}

uint64_t LLM::reload_weights(const std::vector<ExternalTensor>& tensors) {
  const std::lock_guard lock(impl_->mutex);
  impl_->engine.reload_weights(adopt_tensors(tensors).get());
  return impl_->engine.weights_version();
}

uint64_t LLM::weights_version() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.weights_version();
}

std::vector<WeightInfo> LLM::weights() const {
  const std::lock_guard lock(impl_->mutex);
  return describe_weights(impl_->engine.weights(), impl_->engine.config().model.dtype);
}

std::vector<std::byte> LLM::read_weight(const std::string& name) const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.read_weight(name);
}

std::vector<WeightInfo> LLM::weights_of_rank(int32_t rank) const {
  const std::lock_guard lock(impl_->mutex);
  return describe_weights(impl_->engine.weights_of_rank(rank), impl_->engine.config().model.dtype);
}

std::vector<std::byte> LLM::read_weight_of_rank(int32_t rank, const std::string& name) const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.read_weight_of_rank(rank, name);
}

uint64_t LLM::load_weights_of_ranks(const std::vector<std::vector<ExternalTensor>>& parts) {
  const std::vector<std::vector<CheckpointTensor>> tensors = adopt_parts(parts);
  const std::lock_guard lock(impl_->mutex);
  impl_->engine.load_weights_of_ranks(tensors);
  return impl_->engine.weights_version();
}

std::vector<Metric> LLM::metrics() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.metrics();
}

void LLM::start_recording() {
  const std::lock_guard lock(impl_->mutex);
  impl_->engine.start_recording();
}

Recording LLM::stop_recording() {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.stop_recording();
}

Stats LLM::stats() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->engine.stats();
}

const ModelInfo& LLM::info() const { return impl_->description; }

ModelInfo plan_model(const std::string& model_dir, const EngineOptions& options) {
  const Devices devices = make_devices(options);
  return describe_all(resolve_engine_config(model_dir, options, *devices.front()), devices);
}

void validate(const SamplingParams& params) { validate_sampling_params(params); }

void set_log_callback(std::function<void(int level, const std::string& message)> callback) {
  if (!callback) {
    set_log_sink({});
    return;
  }
  set_log_sink([callback = std::move(callback)](LogLevel level, const std::string& message) {
    callback(static_cast<int>(level), message);
  });
}

std::vector<std::string> supported_architectures() { return arch_registry().supported(); }

}  // namespace quire
