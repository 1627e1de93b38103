// The choice of beams; see beam_search.h and docs/decoding.md.
#include "engine/beam_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/check.h"

namespace quire {

BeamSearch::BeamSearch(const BeamSearchParams& params, std::vector<int32_t> stop_token_ids, int64_t num_prompt_tokens,
                       int32_t max_tokens, std::shared_ptr<const Vocabulary> vocabulary)
    : params_(params),
      stop_token_ids_(std::move(stop_token_ids)),
      num_prompt_tokens_(num_prompt_tokens),
      max_tokens_(max_tokens),
      vocabulary_(std::move(vocabulary)) {
  QUIRE_CHECK(params.beam_width > 0 && max_tokens > 0, params.beam_width, " beams, ", max_tokens, " tokens");
  QUIRE_CHECK(params.stop.empty() || vocabulary_ != nullptr, "stop strings need a vocabulary");
  beams_.push_back({});
}

int32_t BeamSearch::num_candidates(int32_t beam_width, size_t num_stop_token_ids, int64_t vocab_size) {
  const int64_t wanted = std::max<int64_t>(2, 1 + static_cast<int64_t>(num_stop_token_ids)) * beam_width;
  return static_cast<int32_t>(std::min(wanted, vocab_size));
}

void BeamSearch::offer(int32_t slot, std::span<const int32_t> token_ids, std::span<const float> logprobs) {
  const auto beam = std::ranges::find(beams_, slot, &Beam::slot);
  QUIRE_CHECK(beam != beams_.end() && beam->row < 0, "slot ", slot, " offers twice, or has no beam");
  if (width_ == 0) width_ = token_ids.size();
  QUIRE_CHECK(token_ids.size() == width_ && logprobs.size() == width_, token_ids.size(), " candidates, not ", width_);
  beam->row = static_cast<int32_t>(row_token_ids_.size() / width_);
  row_token_ids_.insert(row_token_ids_.end(), token_ids.begin(), token_ids.end());
  row_logprobs_.insert(row_logprobs_.end(), logprobs.begin(), logprobs.end());
  ++num_offered_;
}

const BeamMoves& BeamSearch::advance(const FindComplete& find_complete) {
  QUIRE_CHECK(ready(), num_offered_, " of ", beams_.size(), " beams have offered");
  moves_ = {};
  gather();
  const size_t num_kept = std::min(candidates_.size(), static_cast<size_t>(params_.beam_width));
  // Stable: of equal ones the better beam's, then the more likely token's.
  std::ranges::stable_sort(candidates_, std::greater(), &Candidate::cumulative_logprob);
  live_on(num_kept);
  num_offered_ = 0;
  if (find_complete) retire(find_complete(moves_));
  if (++num_steps_ >= max_tokens_ || beams_.empty() || !can_improve()) end();
  return moves_;
}

// Completes the stop tokens and stop strings of all rows and lists the other candidates.
void BeamSearch::gather() {
  candidates_.clear();
  for (size_t b = 0; b < beams_.size(); ++b) {
    const double before = cumulative_logprob(beams_[b].node);
    const size_t begin = static_cast<size_t>(beams_[b].row) * width_;
    for (size_t rank = 0; rank < width_; ++rank) {
      const float logprob = row_logprobs_[begin + rank];
      if (!(logprob > -std::numeric_limits<float>::infinity())) continue;  // impossible tokens, and no numbers
      const int32_t token = row_token_ids_[begin + rank];
      Candidate candidate = {b, static_cast<int32_t>(rank), before + static_cast<double>(logprob)};
      if (is_stop(token)) {
        complete(add_node(candidate), {.is_stopped = true});
        continue;
      }
      if (!params_.stop.empty()) {
        if (beams_[b].node >= 0) candidate.text_tail = nodes_[static_cast<size_t>(beams_[b].node)].text_tail;
        const int32_t stop = advance_text(candidate.text_tail, vocabulary_->bytes(token), params_.stop);
        if (stop >= 0) {
          complete(add_node(candidate), {.stop_string = stop});
          continue;
        }
      }
      candidates_.push_back(std::move(candidate));
    }
  }
}

// The best candidates become the beams. A parent's first child takes its slot, so that most beams need no fork.
void BeamSearch::live_on(size_t num_kept) {
  std::vector<Beam> next;
  std::vector<int32_t> num_children(beams_.size(), 0);
  std::vector<bool> is_taken(static_cast<size_t>(params_.beam_width), false);
  for (size_t i = 0; i < num_kept; ++i) ++num_children[candidates_[i].beam];
  for (size_t b = 0; b < beams_.size(); ++b) {
    if (num_children[b] == 0) moves_.dropped.push_back(beams_[b].slot);
    is_taken[static_cast<size_t>(beams_[b].slot)] = num_children[b] > 0;
  }
  std::vector<bool> has_child(beams_.size(), false);
  for (size_t i = 0; i < num_kept; ++i) {
    const Candidate& candidate = candidates_[i];
    int32_t slot = beams_[candidate.beam].slot;
    if (has_child[candidate.beam]) {
      const auto free_slot = std::ranges::find(is_taken, false) - is_taken.begin();
      is_taken[static_cast<size_t>(free_slot)] = true;
      moves_.forks.push_back({slot, static_cast<int32_t>(free_slot)});
      slot = static_cast<int32_t>(free_slot);
    }
    has_child[candidate.beam] = true;
    next.push_back({slot, add_node(candidate), -1});
    moves_.appended.push_back({slot, token(nodes_.back())});
  }
  beams_ = std::move(next);
}

int32_t BeamSearch::add_node(const Candidate& candidate) {
  const Beam& beam = beams_[candidate.beam];
  nodes_.push_back({.parent = beam.node,
                    .row = beam.row,
                    .rank = candidate.rank,
                    .cumulative_logprob = candidate.cumulative_logprob,
                    .num_tokens = num_steps_ + 1,
                    .text_tail = candidate.text_tail});
  return static_cast<int32_t>(nodes_.size()) - 1;
}

// Those that come after beam_width better ones are never returned.
void BeamSearch::complete(int32_t node, const End& end) {
  const Node& last = nodes_[static_cast<size_t>(node)];
  const Completed added = {node, score(last.cumulative_logprob, last.num_tokens, end.is_stopped), end};
  completed_.insert(std::ranges::upper_bound(completed_, added.score, std::greater(), &Completed::score), added);
  if (std::ssize(completed_) > params_.beam_width) completed_.pop_back();
}

void BeamSearch::retire(std::span<const int32_t> slots) {
  for (const int32_t slot : slots) {
    const auto beam = std::ranges::find(beams_, slot, &Beam::slot);
    QUIRE_CHECK(beam != beams_.end(), "slot ", slot, " has no beam");
    complete(beam->node, {.is_complete = true});
    beams_.erase(beam);
  }
}

bool BeamSearch::is_live(int32_t slot) const { return std::ranges::find(beams_, slot, &Beam::slot) != beams_.end(); }

// Sums only become smaller, so the best score a beam can still reach is that of its sum at the kindest length.
bool BeamSearch::can_improve() const {
  if (std::ssize(completed_) < params_.beam_width) return true;
  const int32_t kindest_length = params_.length_penalty > 0.0 ? max_tokens_ : num_steps_;
  return std::ranges::any_of(beams_, [&](const Beam& beam) {
    return score(cumulative_logprob(beam.node), kindest_length, false) >= completed_.back().score;
  });
}

void BeamSearch::end() {
  for (const Beam& beam : beams_) complete(beam.node, {});
  beams_.clear();
  moves_ = {};
}

double BeamSearch::score(double cumulative_logprob, int64_t num_tokens, bool is_stopped) const {
  const int64_t length = params_.length_includes_prompt ? num_prompt_tokens_ + num_tokens - (is_stopped ? 1 : 0)
                                                        : std::max<int64_t>(1, num_tokens);
  return cumulative_logprob / std::pow(static_cast<double>(length), params_.length_penalty);
}

double BeamSearch::cumulative_logprob(int32_t node) const {
  return node < 0 ? 0.0 : nodes_[static_cast<size_t>(node)].cumulative_logprob;
}

int32_t BeamSearch::token(const Node& node) const {
  return row_token_ids_[static_cast<size_t>(node.row) * width_ + static_cast<size_t>(node.rank)];
}

bool BeamSearch::is_stop(int32_t token) const {
  return std::ranges::find(stop_token_ids_, token) != stop_token_ids_.end();
}

std::vector<Completion> BeamSearch::results() const {
  std::vector<Completion> results;
  for (const Completed& completed : completed_) {
    results.push_back(completion(completed));
    results.back().index = static_cast<int32_t>(results.size()) - 1;
  }
  return results;
}

Completion BeamSearch::completion(const Completed& completed) const {
  std::vector<int32_t> path;
  for (int32_t node = completed.node; node >= 0; node = nodes_[static_cast<size_t>(node)].parent) path.push_back(node);
  std::ranges::reverse(path);
  Completion result;
  result.cumulative_logprob = cumulative_logprob(completed.node);
  const End& end = completed.end;
  const bool has_stopped = end.is_stopped || end.stop_string >= 0 || end.is_complete;
  result.finish_reason = has_stopped ? FinishReason::stop : FinishReason::length;
  result.stop_string_index = end.stop_string;
  result.is_complete = end.is_complete;
  LogprobBuffer& logprobs = result.logprobs;
  logprobs.width = static_cast<int32_t>(width_) + 1;
  for (const int32_t id : path) {
    const Node& node = nodes_[static_cast<size_t>(id)];
    const auto begin = static_cast<std::ptrdiff_t>(static_cast<size_t>(node.row) * width_);
    const auto count = static_cast<std::ptrdiff_t>(width_);
    result.token_ids.push_back(token(node));
    logprobs.token_ids.push_back(token(node));
    logprobs.token_ids.insert(logprobs.token_ids.end(), row_token_ids_.begin() + begin,
                              row_token_ids_.begin() + begin + count);
    logprobs.logprobs.push_back(row_logprobs_[static_cast<size_t>(begin) + static_cast<size_t>(node.rank)]);
    logprobs.logprobs.insert(logprobs.logprobs.end(), row_logprobs_.begin() + begin,
                             row_logprobs_.begin() + begin + count);
    logprobs.sampled_ranks.push_back(node.rank + 1);
  }
  const bool is_primary =
      !params_.ignore_eos && !stop_token_ids_.empty() && result.token_ids.back() == stop_token_ids_.front();
  if (end.is_stopped && !is_primary) result.stop_token_id = result.token_ids.back();
  return result;
}

}  // namespace quire
