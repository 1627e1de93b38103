// Weights that change between requests; see engine.h.
//
// Decides: when they may, and what is forgotten with them. How they are written is in model/weight_update.h.
#include "base/check.h"
#include "engine/engine.h"

namespace quire {

void Engine::require_whole_weights() const {
  require_can_run();
  if (in_weight_update_) {
    throw InvalidArgument(
        "the weights are being updated by the call that asks; requests can be made when it has returned");
  }
  if (worker_.weights_incomplete()) {
    throw InvalidArgument(
        "the weights are neither old nor new: an update that kept no copy of the old ones failed midway. Load all of "
        "them again: reload_weights(), or load_weights() with every tensor of the model.");
  }
}

template <typename Change>
void Engine::change_weights(const Change& change) {
  if (!broken_.empty()) throw DeviceError(broken_);
  if (in_weight_update_) throw InvalidArgument("the weights are being updated already, by the call that asks");
  if (in_step_ || in_hooks_) throw InvalidArgument("a callback cannot change the weights; that is done between steps");
  require_resident_weights(asleep_);
  const SchedulerStats scheduler = scheduler_.stats();
  // Requests that sleep with the engine are computed anew, with the new weights.
  if (asleep_.scheduling) empty_cache();
  if (scheduler_.has_work() && !asleep_.scheduling) {
    throw InvalidArgument(str_cat("the weights cannot change while requests are in flight: ", scheduler.num_running,
                                  " running, ", scheduler.num_waiting,
                                  " waiting. Wait for them or cancel them first."));
  }
  while (scheduler_.num_in_flight() > 0) collect();  // of requests that were cancelled
  const uint64_t before = worker_.weights_version();
  in_weight_update_ = true;
  const auto end = [&] {
    in_weight_update_ = false;
    if (worker_.weights_version() == before) return;
    scheduler_.reset_prefix_cache();
    if (!worker_.weights_incomplete()) worker_.weights_replaced();
  };
  try {
    change();
  } catch (...) {
    end();
    throw;
  }
  end();
}

std::vector<std::byte> Engine::read_weight(const std::string& name) {
  require_resident_weights(asleep_);
  return quire::read_weight(worker_.weights(), name);
}

std::vector<ReadableWeight> Engine::weights_of_rank(int32_t rank) {
  worker_.require_rank(rank);
  return readable_weights(worker_.weights().all.at(static_cast<size_t>(rank)), Extent::shard);
}

std::vector<std::byte> Engine::read_weight_of_rank(int32_t rank, const std::string& name) {
  worker_.require_rank(rank);
  require_resident_weights(asleep_);
  return read_shard(worker_.weights(), static_cast<size_t>(rank), name);
}

void Engine::load_weights_of_ranks(const std::vector<std::vector<CheckpointTensor>>& parts) {
  worker_.require_part_a_rank(parts.size());
  change_weights([&] { update_shards(worker_.weights(), parts); });
}

void Engine::load_weights(const NextTensor& next, bool atomic) {
  change_weights([&] { update_weights(worker_.weights(), next, atomic); });
}

void Engine::check_weights(const std::vector<CheckpointTensor>& tensors) {
  check_tensors(worker_.first().weight_access(), tensors);
}

void Engine::reload_weights(const Checkpoint* checkpoint) {
  change_weights([&] { quire::reload_weights(worker_.weights(), checkpoint); });
}

}  // namespace quire
