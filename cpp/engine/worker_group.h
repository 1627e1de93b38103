// The workers of an engine that generates: one a rank, and the verbs of a step on all of them.
//
// Decides: which rank does what. A verb returns when all ranks have done it. Does not know: threads, ranks that fail
// (rank_group.h, rank_threads.h), requests, what a verb computes. Engine thread only.
#pragma once

#include <memory>
#include <span>

#include "engine/rank_group.h"
#include "engine/worker.h"

namespace quire {

class WorkerGroup : public RankGroup<Worker> {
 public:
  using RankGroup::RankGroup;

  // The verbs of a Worker, done by all ranks.
  void load(const Checkpoint* checkpoint, const Checkpoint* draft_checkpoint = nullptr);
  void upload(const Batch& batch, const SamplingBatch& sampling, std::span<const PromptRow> prompt_rows,
              const WantedStates& wanted);
  void copy_blocks(std::span<const BlockCopy> copies);
  // By the first rank, which has the draft model.
  void guess(Batch& batch, const SamplingBatch& sampling);
  void run();
  void run_forward();
  void run_sample(const SamplingBatch& sampling);
  // Of the first rank, which samples.
  const SampledTokens& fetch();
  const PromptScores& prompt_scores() const { return first().prompt_scores(); }
  const StateRows& state_rows() const { return first().state_rows(); }
  void adopt_checkpoints(const std::shared_ptr<const Checkpoint>& checkpoint,
                         const std::shared_ptr<const Checkpoint>& draft_checkpoint);
  int64_t vocab_size() const { return first().vocab_size(); }
};

}  // namespace quire
