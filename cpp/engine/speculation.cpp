// Speculative decoding in the engine; see engine.h. Verbs: plan, commit.
//
// Decides: who is guessed for, and what the guesses are. That they change no output is decided elsewhere: each row of a
// step is sampled with the noise of its own output index, as it would be in a step of its own, and the scheduler takes
// the rows behind right drafts only. Rows whose parameters depend on the text so far are not guessed for.
#include <algorithm>
#include <utility>

#include "engine/engine.h"

namespace quire {

void Engine::propose_drafts(const StepInFlight& step) {
  const SpeculationConfig& config = config_.speculation;
  if (config.max_num_seqs > 0 && scheduler_.stats().num_running > config.max_num_seqs) return;
  const Sequence* last = nullptr;
  for (const Row& row : step.rows) {
    if (std::exchange(last, row.sequence) == row.sequence || !row.counts || !row.record->speculates) continue;
    Sequence& sequence = *row.sequence->request->sequences[static_cast<size_t>(row.sequence->index)];
    if (sequence.finished()) continue;
    const int64_t room = config.max_model_len - sequence.num_tokens();
    const auto num_drafts = static_cast<int32_t>(std::clamp<int64_t>(room, 0, config.num_tokens));
    if (config.has_draft_model()) {
      sequence.drafts.assign(static_cast<size_t>(num_drafts), -1);
      continue;
    }
    std::unique_ptr<NgramProposer>& ngrams = row.record->sequences[static_cast<size_t>(sequence.index)].ngrams;
    if (ngrams == nullptr) ngrams = std::make_unique<NgramProposer>(config.lookup_min, config.lookup_max);
    ngrams->propose(sequence.tokens, num_drafts, sequence.drafts);
  }
}

// The draft model writes into the batch; the sequences are told, for the commit.
void Engine::guess(StepInFlight& step) {
  const SpanScope span = timed("draft");
  worker_.guess(step.batch, step.sampling);
  const std::span<const ScheduledSequence> planned = scheduler_.planned();
  for (size_t i = 0; i < planned.size(); ++i) {
    const auto drafts = std::span(step.batch.token_ids)
                            .first(static_cast<size_t>(step.batch.query_start[i + 1]))
                            .last(static_cast<size_t>(planned[i].num_drafts));
    std::ranges::copy(drafts, planned[i].sequence->drafts.begin());
  }
}

void Engine::record_drafts(const StepInFlight& step) {
  for (size_t i = 0; i < step.rows.size();) {
    const Row& row = step.rows[i];
    int64_t num_rows = 0, num_taken = 0;
    for (; i < step.rows.size() && step.rows[i].sequence == row.sequence; ++i) {
      ++num_rows;
      num_taken += step.rows[i].counts ? 1 : 0;
    }
    if (num_taken == 0 || row.record->beams != nullptr) continue;
    totals_.num_draft_tokens += num_rows - 1;
    totals_.num_accepted_tokens += num_taken - 1;
    std::vector<int64_t>& counts = row.record->acceptance_counts;
    counts.resize(static_cast<size_t>(config_.speculation.num_tokens) + 1);
    for (int64_t taken = 0; taken < num_taken; ++taken) ++counts[static_cast<size_t>(taken)];
  }
}

}  // namespace quire
