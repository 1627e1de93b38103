// The verbs of a pooling step on all ranks; see pooling_group.h.
#include "engine/pooling_group.h"

namespace quire {

void PoolingGroup::load(const Checkpoint* checkpoint) {
  load_all(checkpoint, [](PoolingWorker& worker, const Checkpoint* read) { worker.load(read); });
}

void PoolingGroup::upload(const PoolingBatch& batch) {
  each("upload", [&](PoolingWorker& worker) { worker.upload(batch); });
}

int64_t PoolingGroup::run(const PoolingBatch& batch, PoolingType type, bool with_head) {
  int64_t num_columns = 0;
  each("run", [&](PoolingWorker& worker) {
    const int64_t own = worker.run(batch, type, with_head);
    if (worker.is_first_rank()) num_columns = own;
  });
  return num_columns;
}

// Where a verb is done on return the other ranks have nothing to wait for.
std::span<const float> PoolingGroup::fetch() {
  if (!first().device().is_asynchronous()) return first().fetch();
  std::span<const float> rows;
  each("fetch", [&](PoolingWorker& worker) {
    const std::span<const float> own = worker.fetch();
    if (worker.is_first_rank()) rows = own;
  });
  return rows;
}

void PoolingGroup::adopt_checkpoint(const std::shared_ptr<const Checkpoint>& checkpoint) {
  each("adopt_checkpoint", [&](PoolingWorker& worker) { worker.adopt_checkpoint(checkpoint); });
}

}  // namespace quire
