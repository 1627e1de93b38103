// Hidden states and logits that requests want back; see engine.h. Verbs: upload, commit.
#include <algorithm>

#include "base/check.h"
#include "engine/engine.h"

namespace quire {

// Of a prompt's tokens that the step computes and that were not returned before, and of every token that it samples.
// As with log-probabilities the first sequence of a request answers for its prompt.
void Engine::begin_states(StepInFlight& step) const {
  step.wanted_states.clear();
  step.prompt_states.clear();
  step.state_rows.clear();
  if (num_state_readers_ == 0) return;
  const std::span<const ScheduledSequence> planned = scheduler_.planned();
  for (size_t i = 0; i < planned.size(); ++i) {
    const Sequence& sequence = *planned[i].sequence;
    const Request& request = *sequence.request;
    if (!request.params.return_hidden_states || sequence.index != 0) continue;
    const int32_t begin = std::max(planned[i].begin, request.num_judged);
    const int32_t end = std::min(planned[i].kv_len(), static_cast<int32_t>(request.prompt.size()));
    if (begin >= end) continue;
    for (int32_t position = begin; position < end; ++position) {
      step.wanted_states.token_rows.push_back(step.batch.query_start[i] + position - planned[i].begin);
    }
    step.prompt_states.push_back({&sequence, begin, end - begin});
  }
  for (size_t i = 0; i < step.rows.size(); ++i) {
    const SamplingParams& params = step.rows[i].sequence->request->params;
    if (!params.return_hidden_states && !params.return_logits) continue;
    StateRow& wish = step.state_rows.emplace_back(StateRow{.row = i});
    if (params.return_hidden_states) {
      wish.hidden = std::ssize(step.wanted_states.token_rows);
      step.wanted_states.token_rows.push_back(step.batch.sample_token_rows[i]);
    }
    if (params.return_logits) {
      wish.logits = std::ssize(step.wanted_states.samples);
      step.wanted_states.samples.push_back(static_cast<int32_t>(i));
    }
  }
}

void Engine::record_prompt_states(const StepInFlight& step, const StateRows& states) {
  size_t row = 0;
  for (const JudgedTokens& prompt : step.prompt_states) {
    const size_t begin = row;
    row += static_cast<size_t>(prompt.count);
    if (prompt.sequence->finished()) continue;
    RowBuffer& buffer = prompt.sequence->request->record->prompt_hidden_states;
    buffer.width = states.hidden_width;
    QUIRE_CHECK(std::ssize(buffer.values) == prompt.first * buffer.width, buffer.values.size(),
                " numbers of a prompt's hidden states are there, now comes token ", prompt.first);
    states.append_hidden(begin, static_cast<size_t>(prompt.count), buffer.values);
  }
}

// What a row that does not count points to may be gone.
void Engine::record_states(const StepInFlight& step, const StateRows& states) {
  for (const StateRow& wish : step.state_rows) {
    const Row& row = step.rows[wish.row];
    if (!row.counts) continue;
    RequestRecord::OfSequence& own = row.record->sequences[static_cast<size_t>(row.sequence->index)];
    if (wish.hidden >= 0) {
      own.hidden_states.width = states.hidden_width;
      states.append_hidden(static_cast<size_t>(wish.hidden), 1, own.hidden_states.values);
    }
    if (wish.logits >= 0) {
      own.logits.width = states.vocab_size;
      states.append_logits(static_cast<size_t>(wish.logits), own.logits.values);
    }
  }
}

}  // namespace quire
