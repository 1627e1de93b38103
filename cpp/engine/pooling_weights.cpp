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
  if (worker_.weight_state().is_incomplete) {
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
    if (weights_version() != before && !worker_.weight_state().is_incomplete) worker_.weights_replaced();
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
  return quire::read_weight(one_rank(worker_.weight_access()), name);
}

void PoolingEngine::load_weights(const NextTensor& next, bool atomic) {
  change_weights([&] { update_weights(one_rank(worker_.weight_access()), next, atomic); });
}

void PoolingEngine::reload_weights(const Checkpoint* checkpoint) {
  change_weights([&] { quire::reload_weights(one_rank(worker_.weight_access()), checkpoint); });
}

}  // namespace quire
