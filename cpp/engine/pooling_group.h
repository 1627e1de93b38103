// The workers of a pooling engine: one a rank, and the verbs of a step on all of them.
//
// Decides: which rank does what. A verb returns when all ranks have done it. Does not know: threads, ranks that fail
// (rank_group.h, rank_threads.h), requests. Engine thread only.
#pragma once

#include <memory>
#include <span>

#include "engine/pooling_worker.h"
#include "engine/rank_group.h"

namespace quire {

class PoolingGroup : public RankGroup<PoolingWorker> {
 public:
  using RankGroup::RankGroup;

  // The verbs of a PoolingWorker, done by all ranks.
  void load(const Checkpoint* checkpoint);
  void upload(const PoolingBatch& batch);
  // The answer is the first rank's.
  int64_t run(const PoolingBatch& batch, PoolingType type, bool with_head);
  std::span<const float> fetch();
  void adopt_checkpoint(const std::shared_ptr<const Checkpoint>& checkpoint);
};

}  // namespace quire
