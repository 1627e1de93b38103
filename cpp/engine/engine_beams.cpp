// Beam searches as requests of the engine; see engine.h and beam_search.h. Verb: commit.
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

#include "base/check.h"
#include "engine/engine.h"
#include "engine/flag.h"

namespace quire {
namespace {

// Takes all other logits away.
LogitsProcessor keep_only(std::vector<int32_t> ids) {
  std::ranges::sort(ids);
  return [ids = std::move(ids)](std::span<const int32_t>, std::span<const int32_t>, std::span<float> logits) {
    size_t next = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
      while (next < ids.size() && static_cast<size_t>(ids[next]) < i) ++next;
      const bool is_allowed = next < ids.size() && static_cast<size_t>(ids[next]) == i;
      if (!is_allowed) logits[i] = -std::numeric_limits<float>::infinity();
    }
  };
}

}  // namespace

uint64_t Engine::submit_beam_search(std::vector<int32_t> prompt, const BeamSearchParams& params,
                                    DeltaCallback callback) {
  validate(prompt, params);
  std::vector<int32_t> stop_ids = params.ignore_eos ? std::vector<int32_t>() : config_.model.eos_token_ids;
  stop_ids.insert(stop_ids.end(), params.stop_token_ids.begin(), params.stop_token_ids.end());
  const int32_t width = BeamSearch::num_candidates(params.beam_width, stop_ids.size(), config_.model.arch.vocab_size);
  // What is sampled is not used: the likeliest tokens of each beam are.
  SamplingParams sampling = {
      .n = params.beam_width, .temperature = 0.0f, .max_tokens = params.max_tokens, .logprobs = width};
  sampling.constraint = params.constraint;
  if (!params.allowed_token_ids.empty()) sampling.logits_processors.push_back(keep_only(params.allowed_token_ids));
  std::unique_ptr<Request> request = make_request(std::move(prompt), sampling);
  request->host_chooses = true;
  const auto num_prompt = static_cast<int64_t>(request->prompt.size());
  auto record = std::make_shared<RequestRecord>();
  record->callback = std::move(callback);
  record->notify = Notify::finished;
  record->reads_output = true;
  record->changes_each_step = changes_each_step(sampling);
  record->beams =
      std::make_unique<BeamSearch>(params, std::move(stop_ids), num_prompt,
                                   static_cast<int32_t>(request->max_total_tokens - num_prompt), vocabulary_);
  return queue(std::move(request), std::move(record));
}

// The beams of a request need not sample in the same step: it goes on when all have.
void Engine::advance_beams(const StepInFlight& step, const SampledTokens& sampled) {
  for (size_t i = 0; i < step.rows.size(); ++i) {
    const Row& row = step.rows[i];
    if (!row.counts || row.record->beams == nullptr) continue;
    const auto width = static_cast<size_t>(*row.sequence->request->params.logprobs);
    const size_t begin = i * static_cast<size_t>(sampled.logprobs_stride) + 1;  // behind the sampled token
    row.record->beams->offer(row.sequence->index, sampled.logprob_ids.subspan(begin, width),
                             sampled.logprobs.subspan(begin, width));
  }
  for (const Row& row : step.rows) {
    if (row.counts && row.record->beams != nullptr && row.record->beams->ready()) move_beams(*row.sequence->request);
  }
}

void Engine::move_beams(Request& request) {
  BeamSearch& beams = *request.record->beams;
  FindComplete find_complete;
  if (request.params.constraint != nullptr) {
    find_complete = [&](const BeamMoves& moves) { return move_constraints(request, moves); };
  }
  const BeamMoves* moves = nullptr;
  try {
    moves = &beams.advance(find_complete);
  } catch (const std::runtime_error& error) {
    return fail(*request.sequences.front(), error.what());
  }
  const auto sequence = [&](int32_t slot) -> Sequence& { return *request.sequences[static_cast<size_t>(slot)]; };
  for (const int32_t slot : moves->dropped) scheduler_.drop(sequence(slot));
  for (const auto& [parent, slot] : moves->forks) scheduler_.fork(sequence(parent), sequence(slot));
  for (const auto& [slot, token] : moves->appended) {
    if (beams.is_live(slot)) {
      scheduler_.append(sequence(slot), token);
    } else {
      scheduler_.drop(sequence(slot));
    }
  }
  if (beams.finished()) scheduler_.cancel(request.id, FinishReason::stop);
}

// The states of the constraint go the way of the beams. Returns the slots after whose tokens nothing may follow.
std::vector<int32_t> Engine::move_constraints(Request& request, const BeamMoves& moves) {
  TokenConstraint& constraint = *request.params.constraint;
  const auto state = [&](int32_t slot) -> std::shared_ptr<void>& {
    return request.record->sequences[static_cast<size_t>(slot)].constraint_state;
  };
  std::vector<CommittedToken> tokens;
  std::string error;
  try {
    const Flag running(in_hooks_);
    for (const int32_t slot : moves.dropped) state(slot) = nullptr;
    for (const auto& [parent, slot] : moves.forks) state(slot) = constraint.fork(state(parent).get());
    for (const auto& [slot, token] : moves.appended) {
      tokens.push_back({.state = state(slot).get(), .token_id = token, .error = {}});
    }
    if (!tokens.empty()) constraint.commit(tokens);
  } catch (const std::exception& raised) {
    error = str_cat("the request's constraint failed: ", raised.what());
  }
  std::vector<int32_t> complete;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (error.empty()) error = tokens[i].error;
    if (tokens[i].is_last) complete.push_back(moves.appended[i].slot);
  }
  if (!error.empty()) throw std::runtime_error(error);
  return complete;
}

}  // namespace quire
