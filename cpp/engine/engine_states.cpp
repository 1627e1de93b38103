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
    if (params.return_hidden_states) step.wanted_states.token_rows.push_back(step.batch.sample_token_rows[i]);
    if (params.return_logits) step.wanted_states.samples.push_back(static_cast<int32_t>(i));
  }
}

void Engine::record_states(const StepInFlight& step, const StateRows& states) {
  if (step.wanted_states.empty()) return;
  size_t hidden_row = 0, logits_row = 0;
  for (const JudgedTokens& prompt : step.prompt_states) {
    const size_t begin = hidden_row;
    hidden_row += static_cast<size_t>(prompt.count);
    if (prompt.sequence->finished()) continue;
    RowBuffer& buffer = prompt.sequence->request->record->prompt_hidden_states;
    buffer.width = states.hidden_width;
    QUIRE_CHECK(std::ssize(buffer.values) == prompt.first * buffer.width, buffer.values.size(),
                " numbers of a prompt's hidden states are there, now comes token ", prompt.first);
    states.append_hidden(begin, static_cast<size_t>(prompt.count), buffer.values);
  }
  for (const Row& row : step.rows) {
    const SamplingParams& params = row.sequence->request->params;
    const size_t own_hidden = params.return_hidden_states ? hidden_row++ : 0;
    const size_t own_logits = params.return_logits ? logits_row++ : 0;
    if (!row.counts) continue;
    RequestRecord::OfSequence& own = row.record->sequences[static_cast<size_t>(row.sequence->index)];
    if (params.return_hidden_states) {
      own.hidden_states.width = states.hidden_width;
      states.append_hidden(own_hidden, 1, own.hidden_states.values);
    }
    if (params.return_logits) {
      own.logits.width = states.vocab_size;
      states.append_logits(own_logits, own.logits.values);
    }
  }
}

}  // namespace quire
