// When a sequence ends; see sequence.h.
#include "engine/sequence.h"

#include <algorithm>

namespace quire {
// Matches that lie wholly in the old tail were judged when they were completed.
int32_t advance_text(std::string& tail, std::string_view bytes, const std::vector<std::string>& stops) {
  if (stops.empty()) return -1;
  const size_t tail_bytes = tail.size();
  tail += bytes;
  size_t first_end = std::string::npos;
  size_t longest = 0;
  int32_t found = -1;
  for (size_t i = 0; i < stops.size(); ++i) {
    const std::string& stop = stops[i];
    longest = std::max(longest, stop.size());
    const size_t begin = tail.find(stop, tail_bytes + 1 > stop.size() ? tail_bytes + 1 - stop.size() : 0);
    if (begin == std::string::npos || begin + stop.size() >= first_end) continue;
    first_end = begin + stop.size();
    found = static_cast<int32_t>(i);
  }
  if (tail.size() >= longest) tail.erase(0, tail.size() + 1 - longest);
  return found;
}

int32_t Sequence::num_output() const {
  return std::max(0, num_tokens() - static_cast<int32_t>(request->prompt.size()));
}

std::span<const int32_t> Sequence::output() const { return std::span(tokens).last(static_cast<size_t>(num_output())); }

bool Request::finished() const {
  return std::ranges::all_of(sequences, [](const auto& sequence) { return sequence->finished(); });
}

int32_t Request::max_cached_tokens(int32_t num_tokens) const {
  const bool judges = params.prompt_logprobs.has_value() || params.return_hidden_states;
  const bool is_judged = !judges || num_judged + 1 >= static_cast<int32_t>(prompt.size());
  return is_judged ? num_tokens - 1 : std::min(num_tokens - 1, num_judged);
}

void append_token(Sequence& sequence, int32_t token) {
  const Request& request = *sequence.request;
  sequence.tokens.push_back(token);
  const std::vector<std::string>& stops = request.params.stop;
  const int32_t stop_string =
      stops.empty() ? -1 : advance_text(sequence.text_tail, request.vocabulary->bytes(token), stops);
  const bool may_stop = sequence.num_output() >= request.params.min_tokens;
  const auto is_in = [token](const std::vector<int32_t>& ids) { return std::ranges::find(ids, token) != ids.end(); };
  if (may_stop && (is_in(request.eos_token_ids) || is_in(request.params.stop_token_ids))) {
    const bool is_primary = !request.eos_token_ids.empty() && request.eos_token_ids.front() == token;
    sequence.finish_reason = FinishReason::stop;
    sequence.stop_token_id = is_primary ? -1 : token;
  } else if (may_stop && stop_string >= 0) {
    sequence.finish_reason = FinishReason::stop;
    sequence.stop_string_index = stop_string;
  } else if (sequence.is_complete) {
    sequence.finish_reason = FinishReason::stop;
  } else if (sequence.num_tokens() >= request.max_total_tokens) {
    sequence.finish_reason = FinishReason::length;
  }
}

}  // namespace quire
