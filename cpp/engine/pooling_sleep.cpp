// A pooling engine going to sleep and waking up; see pooling_engine.h. Between steps, when nothing is under way.
#include <algorithm>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "engine/flag.h"
#include "engine/pooling_engine.h"

namespace quire {

void PoolingEngine::require_can_run() const {
  require_awake(asleep_);
  if (!workers_.has_weights()) throw_weights_gone();
}

void PoolingEngine::sleep(int32_t level, SleepMode mode) {
  check_sleep_level(level);
  if (in_step_) throw InvalidArgument("a callback cannot put its engine to sleep; do it between steps");
  if (!broken_.empty()) throw DeviceError(broken_);
  if (!asleep_.deepened_by(level)) {
    log_warning("sleep(level=", level, ") does nothing: the engine sleeps already, at level ", asleep_.level);
    return;
  }
  if (mode == SleepMode::wait) finish_requests();
  asleep_.scheduling = true;  // from here on wake_up() undoes what was done, whatever fails
  asleep_.level = std::max(asleep_.level, level);
  if (mode == SleepMode::abort) abort_requests();
  if (level == 0) return;
  asleep_.weights = asleep_.kv_cache = true;
  workers_.sleep(true, true, level == 1);
}

void PoolingEngine::finish_requests() {
  require(can_run() || requests_.empty(),
          "sleep(mode=wait) would wait for ever: requests are queued and the engine cannot run; use the mode keep or "
          "abort");
  while (step()) {
  }
}

void PoolingEngine::abort_requests() {
  const Flag stepping(in_step_);  // callbacks run
  std::vector<uint64_t> ids;
  for (const auto& [id, request] : requests_) ids.push_back(id);
  for (const uint64_t id : ids) cancel(id);
}

bool PoolingEngine::wake_up(const std::vector<std::string>& tags) {
  if (in_step_) throw InvalidArgument("a callback cannot wake its engine up; do it between steps");
  if (!broken_.empty()) throw DeviceError(broken_);
  const SleepState wake = parts_to_wake(tags, asleep_);
  // What is left asleep decides whether the workspace comes back.
  if (wake.weights || wake.kv_cache) {
    workers_.wake(wake.weights, asleep_.weights == wake.weights && asleep_.kv_cache == wake.kv_cache);
  }
  asleep_.wake(wake);
  return !asleep_.any();
}

}  // namespace quire
