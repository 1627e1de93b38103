// What is kept, and the way back; see model_memory.h.
#include "engine/model_memory.h"

#include <utility>

#include "base/check.h"
#include "base/log.h"

namespace quire {

ModelMemory::Source ModelMemory::Source::of_dummy(std::function<void()> pack) {
  return {.problem = [] { return std::string(); }, .pack = std::move(pack)};
}

std::optional<ModelMemory::Source> ModelMemory::Source::of_files(std::shared_ptr<const Checkpoint> checkpoint,
                                                                 std::function<void(const Checkpoint&)> pack) {
  if (checkpoint == nullptr || !checkpoint->reread_problem().empty()) return std::nullopt;
  checkpoint->release_all();
  return Source{.problem = [checkpoint] { return checkpoint->reread_problem(); },
                .pack =
                    [checkpoint, pack = std::move(pack)] {
                      pack(*checkpoint);
                      checkpoint->release_all();
                    }};
}

void ModelMemory::set_source(std::optional<Source> source) {
  QUIRE_CHECK(!asleep_.weights, "weights that sleep were replaced");
  source_ = std::move(source);
  has_weights_ = true;
}

// Copies are taken before anything goes.
void ModelMemory::sleep(const Which& which, bool keep_weights) {
  const bool weights_go = which.weights && (!asleep_.weights || !keep_weights);
  const bool workspace_goes = which.workspace && !asleep_.workspace;
  const bool weights_stay =
      weights_go && keep_weights && has_weights_ && !device_.is_asynchronous() && !can_pack_again();
  std::unique_ptr<RegionCopy> weights, workspace;
  if (weights_go && keep_weights && has_weights_ && device_.is_asynchronous()) weights = copy_of_weights();
  if (workspace_goes) workspace = std::make_unique<RegionCopy>(device_, *parts_.workspace, parts_.kept);
  if (workspace_goes) {
    workspace_copy_ = std::move(workspace);
    parts_.workspace->release();
    asleep_.workspace = true;
  }
  if (which.kv_cache && !asleep_.kv_cache) {
    if (parts_.kv_cache != nullptr) parts_.kv_cache->release();
    asleep_.kv_cache = true;
  }
  if (!weights_go) return;
  if (!keep_weights || !has_weights_) drop_weights();
  weight_copy_ = std::move(weights);
  stays_ = weights_stay;
  if (stays_) {
    warn_that_weights_stay();
  } else {
    parts_.weights->release();
  }
  asleep_.weights = true;
}

// Of layers in host memory the slots have nothing that is not there.
std::unique_ptr<RegionCopy> ModelMemory::copy_of_weights() const {
  const size_t begin = offloaded() != nullptr ? offloaded()->plan().total_slot_bytes() : 0;
  return std::make_unique<RegionCopy>(device_, *parts_.weights,
                                      std::vector<RegionSpan>{{begin, parts_.weights->num_bytes() - begin}});
}

void ModelMemory::warn_that_weights_stay() const {
  log_warning("sleep(level=1) cannot free the ", parts_.weights->num_bytes(), " bytes of weights on device \"",
              device_.name(), "\": they could not be read again, since ",
              source_.has_value() ? source_->problem() : "they are not those of the checkpoint's files",
              ". They stay in memory; sleep(level=2) drops them.");
}

void ModelMemory::drop_weights() {
  weight_copy_.reset();
  stays_ = false;
  has_weights_ = false;
  source_.reset();
  if (offloaded() != nullptr) offloaded()->drop();
}

void ModelMemory::claim(const Which& which) {
  // Before memory is taken for weights that will not come.
  if (which.weights && asleep_.weights && has_weights_ && weight_copy_ == nullptr && !stays_) {
    const std::string problem = source_->problem();
    require(problem.empty(),
            str_cat("the weights cannot be read again: ", problem,
                    ". They are lost to this engine: sleep(level=2), wake_up() and load others, or build a new one."));
  }
  if (which.weights && asleep_.weights) parts_.weights->restore();
  if (which.kv_cache && asleep_.kv_cache && parts_.kv_cache != nullptr) parts_.kv_cache->restore();
  if (which.workspace && asleep_.workspace) parts_.workspace->restore();
}

// The weights first: they alone can fail.
void ModelMemory::wake(const Which& which) {
  if (which.weights && asleep_.weights) wake_weights();
  if (which.kv_cache) asleep_.kv_cache = false;
  if (which.workspace && asleep_.workspace) {
    workspace_copy_->write_back();
    workspace_copy_.reset();
    asleep_.workspace = false;
  }
}

void ModelMemory::wake_weights() {
  if (offloaded() != nullptr) offloaded()->restore();
  if (weight_copy_ != nullptr) {
    weight_copy_->write_back();
    weight_copy_.reset();
  } else if (has_weights_ && !stays_) {
    source_->pack();
  }
  stays_ = false;
  asleep_.weights = false;
}

void ModelMemory::release_claimed() {
  if (asleep_.weights && !stays_) parts_.weights->release();
  if (asleep_.kv_cache && parts_.kv_cache != nullptr) parts_.kv_cache->release();
  if (asleep_.workspace) parts_.workspace->release();
}

}  // namespace quire
