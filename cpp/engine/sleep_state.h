// What of an engine sleeps, and what a call of wake_up() wakes. Pure.
//
// Decides: what tags mean. Weights and KV cache go and come apart from each other; scheduling resumes by itself when
// both are back.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace quire {

struct SleepState {
  bool scheduling = false;  // true: asleep
  bool weights = false;
  bool kv_cache = false;
  int32_t level = 0;  // of the deepest sleep that has not ended

  bool any() const { return scheduling || weights || kv_cache; }
  // Those of `parts` are awake from now on.
  void wake(const SleepState& parts) {
    scheduling = scheduling && !parts.scheduling;
    weights = weights && !parts.weights;
    kv_cache = kv_cache && !parts.kv_cache;
    if (!any()) level = 0;
  }
  // Something would change.
  bool deepened_by(int32_t new_level) const {
    return !scheduling || (new_level > 0 && (!weights || !kv_cache)) || (new_level > level);
  }
};

// Throws InvalidArgument unless it is 0, 1 or 2.
void check_sleep_level(int32_t level);
// What of `asleep` the tags wake; none: all of it. An unknown tag, and one whose part is awake, is told in a warning
// and does nothing.
SleepState parts_to_wake(const std::vector<std::string>& tags, const SleepState& asleep);
// Throws InvalidArgument that says how to go on, while something of `asleep` is.
void require_awake(const SleepState& asleep);
// Throws InvalidArgument while the weights sleep, to who changes or reads them.
void require_resident_weights(const SleepState& asleep);
// Throws InvalidArgument: the weights are gone and nobody has loaded others.
[[noreturn]] void throw_weights_gone();

}  // namespace quire
