// Drafts in a plan, and which of them were right; see scheduler.h. Verbs: plan, commit.
//
// Drafts displace nobody: they take what a step has left, and blocks that nobody holds. Those of wrong drafts go back
// in the same commit.
#include <algorithm>

#include "base/check.h"
#include "engine/scheduler.h"

namespace quire {

void Scheduler::plan_drafts(Step& step, int64_t budget, bool may_grow) {
  int64_t num_rows = 0;
  for (const ScheduledSequence& each : step.planned) num_rows += each.num_samples();
  budget = std::min(budget, options_.max_samples() - num_rows);
  for (ScheduledSequence& each : step.planned) {
    if (budget <= 0) return;
    Sequence& sequence = *each.sequence;
    if (!each.samples || sequence.drafts.empty()) continue;
    QUIRE_CHECK(std::ssize(sequence.drafts) <= options_.num_speculative_tokens, sequence.drafts.size(), " drafts");
    // The last token that it may have is sampled behind them.
    const int64_t num_useful = sequence.request->max_total_tokens - sequence.num_tokens() - 1;
    int64_t num_drafts = std::min({std::ssize(sequence.drafts), budget, num_useful});
    if (num_drafts <= 0) continue;
    if (may_grow) grow(sequence, static_cast<int32_t>(each.kv_len() + num_drafts));
    const int64_t room = std::ssize(sequence.blocks) * options_.block_size - each.kv_len();
    num_drafts = std::min(num_drafts, room);
    each.num_drafts = static_cast<int32_t>(num_drafts);
    each.num_new_tokens += each.num_drafts;
    budget -= num_drafts;
  }
}

// Appends tokens up to the first that is not its draft: that one was sampled behind right tokens only, so it is right
// itself. What was computed behind it is computed again.
void Scheduler::take_samples(const ScheduledSequence& scheduled, std::span<const int32_t> sampled,
                             std::span<uint8_t> taken) {
  Sequence& sequence = *scheduled.sequence;
  sequence.draft_lags = false;
  if (sampled.empty()) return;
  if (sequence.request->host_chooses) {
    sequence.awaits_token = true;
    taken.front() = 1;
    return;
  }
  const auto num_drafts = static_cast<size_t>(scheduled.num_drafts);
  size_t num_right = 0;
  for (;;) {
    append_token(sequence, sampled[num_right]);
    taken[num_right] = 1;
    if (sequence.finished() || num_right == num_drafts || sequence.drafts[num_right] != sampled[num_right]) break;
    ++num_right;
  }
  sequence.drafts.clear();
  sequence.num_computed += static_cast<int32_t>(num_right);
  if (num_drafts == 0) return;
  // To guess the last draft its model computed those in front of it alone.
  sequence.draft_lags = options_.has_draft_model && num_right == num_drafts;
  drop_draft_blocks(sequence, sequence.num_computed);
}

void Scheduler::drop_draft_blocks(Sequence& sequence, int32_t num_tokens) const {
  const auto num_blocks = static_cast<size_t>(blocks_for(num_tokens));
  while (sequence.blocks.size() > num_blocks) sequence.blocks.pop_back();
}

}  // namespace quire
