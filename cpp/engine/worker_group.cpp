// The verbs of a step on all ranks; see worker_group.h.
#include "engine/worker_group.h"

namespace quire {

void WorkerGroup::load(const Checkpoint* checkpoint, const Checkpoint* draft_checkpoint) {
  load_all(checkpoint, [&](Worker& worker, const Checkpoint* read) { worker.load(read, draft_checkpoint); });
}

void WorkerGroup::upload(const Batch& batch, const SamplingBatch& sampling, std::span<const PromptRow> prompt_rows,
                         const WantedStates& wanted) {
  each("upload", [&](Worker& worker) {
    static const WantedStates kNone;
    worker.upload(batch, sampling, prompt_rows, worker.is_first_rank() ? wanted : kNone);
  });
}

void WorkerGroup::adopt_checkpoints(const std::shared_ptr<const Checkpoint>& checkpoint,
                                    const std::shared_ptr<const Checkpoint>& draft_checkpoint) {
  each("adopt_checkpoints", [&](Worker& worker) { worker.adopt_checkpoints(checkpoint, draft_checkpoint); });
}

void WorkerGroup::copy_blocks(std::span<const BlockCopy> copies) {
  if (copies.empty()) return;
  each("copy_blocks", [&](Worker& worker) { worker.copy_blocks(copies); });
}

void WorkerGroup::guess(Batch& batch, const SamplingBatch& sampling) {
  each("guess", [&](Worker& worker) {
    if (worker.is_first_rank()) worker.guess(batch, sampling);
  });
}

// Where a verb is done on return nobody asks the other ranks for results later.
static void finish_at_once(Worker& worker) {
  if (!worker.is_first_rank() && !worker.device().is_asynchronous()) worker.fetch();
}

void WorkerGroup::run() {
  each("run", [](Worker& worker) {
    worker.run();
    finish_at_once(worker);
  });
}

void WorkerGroup::run_forward() {
  each("forward", [](Worker& worker) { worker.run_forward(); });
}

void WorkerGroup::run_sample(const SamplingBatch& sampling) {
  each("sample", [&](Worker& worker) {
    worker.run_sample(sampling);
    finish_at_once(worker);
  });
}

const SampledTokens& WorkerGroup::fetch() {
  const SampledTokens* sampled = nullptr;
  const auto fetch_from = [&](Worker& worker) {
    const SampledTokens& own = worker.fetch();
    if (worker.is_first_rank()) sampled = &own;
  };
  if (first().device().is_asynchronous()) {
    each("fetch", fetch_from);
  } else {
    fetch_from(first());
  }
  return *sampled;
}

}  // namespace quire
