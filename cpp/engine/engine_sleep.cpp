// An engine going to sleep and waking up; see engine.h. Between steps.
//
// Decides: what becomes of requests, and that nothing is under way when memory goes. What they had computed is lost
// with the cache and is computed again, bit for bit the same.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "engine/engine.h"
#include "engine/flag.h"

namespace quire {

void Engine::require_can_run() const {
  require_awake(asleep_);
  if (!worker_.has_weights()) throw_weights_gone();
}

void Engine::sleep(int32_t level, SleepMode mode) {
  check_sleep_level(level);
  if (in_step_ || in_hooks_) throw InvalidArgument("a callback cannot put its engine to sleep; do it between steps");
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
  empty_cache();
  asleep_.weights = asleep_.kv_cache = true;
  worker_.sleep(true, true, level == 1);
}

void Engine::finish_requests() {
  require(can_run() || !scheduler_.has_work(),
          "sleep(mode=wait) would wait for ever: requests are queued and the engine cannot run; use the mode keep or "
          "abort");
  while (step()) {
  }
}

void Engine::abort_requests() {
  if (scheduler_.num_in_flight() > 0) {
    worker_.abandon();
    scheduler_.abandon();
  }
  for (const uint64_t id : scheduler_.request_ids()) scheduler_.cancel(id);
  const Flag stepping(in_step_);  // callbacks run
  hand_out_finished(epoch_seconds());
}

void Engine::empty_cache() {
  if (scheduler_.num_in_flight() > 0) {
    worker_.abandon();
    scheduler_.abandon();
  }
  scheduler_.preempt_all();
  const bool is_empty = scheduler_.reset_prefix_cache();
  QUIRE_CHECK(is_empty, "blocks are held, and nobody runs");
}

void Engine::release_kv_cache() {
  require(asleep_.any(), "release_kv_cache_memory() is for an engine that sleeps: call sleep(level=0) first");
  if (in_step_ || in_hooks_) throw InvalidArgument("a callback cannot take its engine's memory");
  if (asleep_.kv_cache) return;
  empty_cache();
  asleep_.kv_cache = true;
  worker_.sleep(false, true, true);
}

bool Engine::wake_up(const std::vector<std::string>& tags) {
  if (in_step_ || in_hooks_) throw InvalidArgument("a callback cannot wake its engine up; do it between steps");
  if (!broken_.empty()) throw DeviceError(broken_);
  const SleepState wake = parts_to_wake(tags, asleep_);
  if (wake.weights || wake.kv_cache) worker_.wake(wake.weights, wake.kv_cache);
  asleep_.wake(wake);
  return !asleep_.any();
}

}  // namespace quire
