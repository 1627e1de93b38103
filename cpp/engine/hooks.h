// The caller's code in a step: token constraints and logits processors. Verbs: sample, commit.
//
// Decides: which calls are made, in which groups, and that what goes wrong in one ends its own requests only. Does not
// know: what a constraint means. The arrays are reused from step to step. Engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/sampling_batch.h"
#include "engine/sequence.h"

namespace quire {

class Worker;

// A sampled row with hooks.
struct HookedRow {
  Sequence* sequence = nullptr;
  int32_t sample = 0;                      // its row of logits
  size_t sampling_row = 0;                 // its row in the SamplingBatch
  std::shared_ptr<void>* state = nullptr;  // of its constraint; lives in the request's record
  std::string error;                       // not empty: its request is to end
};

class StepHooks {
 public:
  void clear() { rows_.clear(); }
  bool empty() const { return rows_.empty(); }
  void add(const Sequence& sequence, int32_t sample, size_t sampling_row, std::shared_ptr<void>& state);
  const std::vector<HookedRow>& rows() const { return rows_; }

  // Between the forward pass and sampling. A row that fails is sampled freely, and its token is to be dropped.
  void fill_masks(SamplingBatch& sampling);
  // Where the host chooses tokens, the mask takes logits away after the processors: what is chosen from are the
  // log-probabilities of what is left.
  void process_logits(Worker& worker, SamplingBatch& sampling);
  // Of sequences that have not ended: tells the constraints, and marks the sequences that are complete. Tokens that the
  // host chooses are told by who does.
  void commit(std::span<const int32_t> sampled);

 private:
  // Calls use(rows, one of their constraints) for the constrained rows of each group; an exception is the error of all
  // of them.
  template <typename Use>
  void for_each_group(bool with_host_choices, const Use& use);

  std::vector<HookedRow> rows_;
  std::vector<HookedRow*> constrained_;
  std::vector<MaskRow> mask_rows_;
  std::vector<CommittedToken> tokens_;
  std::vector<float> logits_copy_;
};

}  // namespace quire
