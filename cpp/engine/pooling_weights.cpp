// Weights of a pooling engine that change between texts; see pooling_engine.h and engine_weights.cpp.
#include "base/check.h"
#include "engine/pooling_engine.h"

namespace quire {

void PoolingEngine::require_whole_weights() const {
  require_can_run();
  if (in_weight_update_) {
    throw InvalidArgument(
        "the weights are being updated by the call that asks; texts can be given when it has returned");
  }
  if (workers_.weights_incomplete()) {
    throw InvalidArgument(
        "the weights are neither old nor new: an update that kept no copy of the old ones failed midway. Load all of "
        "them again: reload_weights(), or load_weights() with every tensor of the model.");
  }
}

template <typename Change>
void PoolingEngine::change_weights(const Change& change) {
  if (!broken_.empty()) throw DeviceError(broken_);
  if (in_weight_update_) throw InvalidArgument("the weights are being updated already, by the call that asks");
  require_resident_weights(asleep_);
  if (!requests_.empty() && !asleep_.scheduling) {
    throw InvalidArgument(str_cat("the weights cannot change while requests are in flight: ", requests_.size(),
                                  " waiting. Wait for them or cancel them first."));
  }
  in_weight_update_ = true;
  const uint64_t before = weights_version();
  const auto end = [&] {
    in_weight_update_ = false;
    if (weights_version() != before && !workers_.weights_incomplete()) workers_.weights_replaced();
  };
  try {
    change();
  } catch (...) {
    end();
    throw;
  }
  end();
}

std::vector<std::byte> PoolingEngine::read_weight(const std::string& name) {
  require_resident_weights(asleep_);
  return quire::read_weight(workers_.weights(), name);
}

std::vector<ReadableWeight> PoolingEngine::weights_of_rank(int32_t rank) {
  workers_.require_rank(rank);
  return readable_weights(workers_.weights().all.at(static_cast<size_t>(rank)), Extent::shard);
}

std::vector<std::byte> PoolingEngine::read_weight_of_rank(int32_t rank, const std::string& name) {
  workers_.require_rank(rank);
  require_resident_weights(asleep_);
  return read_shard(workers_.weights(), static_cast<size_t>(rank), name);
}

void PoolingEngine::load_weights_of_ranks(const std::vector<std::vector<CheckpointTensor>>& parts) {
  workers_.require_part_a_rank(parts.size());
  change_weights([&] { update_shards(workers_.weights(), parts); });
}

void PoolingEngine::load_weights(const NextTensor& next, bool atomic) {
  change_weights([&] { update_weights(workers_.weights(), next, atomic); });
}

void PoolingEngine::reload_weights(const Checkpoint* checkpoint) {
  change_weights([&] { quire::reload_weights(workers_.weights(), checkpoint); });
}

}  // namespace quire
