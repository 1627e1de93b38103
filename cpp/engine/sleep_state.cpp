// Tags and refusals; see sleep_state.h.
#include "engine/sleep_state.h"

#include "base/check.h"
#include "base/log.h"

namespace quire {

void check_sleep_level(int32_t level) {
  require(level >= 0 && level <= 2, str_cat("the sleep level must be 0 (no steps), 1 (weights can be brought back) or "
                                            "2 (weights are dropped), got ",
                                            level));
}

SleepState parts_to_wake(const std::vector<std::string>& tags, const SleepState& asleep) {
  if (!asleep.any()) {
    log_warning("wake_up() does nothing: the engine is awake");
    return {};
  }
  if (tags.empty()) return asleep;
  SleepState wake;
  for (const std::string& tag : tags) {
    const bool known = tag == "weights" || tag == "kv_cache" || tag == "scheduling";
    const bool sleeps = tag == "weights" ? asleep.weights : tag == "kv_cache" ? asleep.kv_cache : asleep.scheduling;
    if (!known) {
      log_warning("wake_up() ignores the tag \"", tag, "\"; there are weights, kv_cache and scheduling");
    } else if (!sleeps) {
      log_warning("wake_up() ignores the tag \"", tag, "\": that is awake");
    }
    if (!known || !sleeps) continue;
    wake.weights = wake.weights || tag == "weights";
    wake.kv_cache = wake.kv_cache || tag == "kv_cache";
    wake.scheduling = wake.scheduling || tag == "scheduling";
  }
  const bool memory_is_back = asleep.weights == wake.weights && asleep.kv_cache == wake.kv_cache;
  if (wake.scheduling && !memory_is_back) {
    log_warning("wake_up() does not resume scheduling before weights and kv_cache are back; then it does by itself");
  }
  // An engine that sleeps at level 0 has no memory that comes back.
  wake.scheduling = memory_is_back && (wake.scheduling || wake.weights || wake.kv_cache);
  return wake;
}

void require_awake(const SleepState& asleep) {
  if (!asleep.any()) return;
  std::string parts;
  if (asleep.weights) parts += " weights";
  if (asleep.kv_cache) parts += parts.empty() ? " kv_cache" : ", kv_cache";
  if (parts.empty()) parts = " scheduling";
  throw InvalidArgument(str_cat("the engine is asleep (level ", asleep.level, "; asleep:", parts,
                                ") and takes no requests; call wake_up() first"));
}

void require_resident_weights(const SleepState& asleep) {
  require(!asleep.weights,
          "the weights are asleep: wake_up(tags=[\"weights\"]) first, change or read them, then wake up the rest");
}

void throw_weights_gone() {
  throw InvalidArgument(
      "the weights were dropped by sleep(level=2), and not all of them were loaded since: load them before the next "
      "request (sleep(level=1) brings weights back by itself)");
}

}  // namespace quire
