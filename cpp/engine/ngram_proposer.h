// Guesses what follows a sequence from what followed its last tokens when they first came. Verb: plan.
//
// Decides: the longest suffix of max_length to min_length tokens that came before counts, and of its places the first
// one, as in vLLM. Every run of so many tokens is entered once, in a table of hashes, so a token costs as many look-ups
// as there are lengths, whatever has been written. A hash is never trusted: tokens are compared.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace quire {

class NgramProposer {
 public:
  NgramProposer(int32_t min_length, int32_t max_length);

  // `tokens`: those of the last call and what came since. Writes what followed, at most `max_drafts` tokens; none when
  // no suffix came before.
  void propose(std::span<const int32_t> tokens, int32_t max_drafts, std::vector<int32_t>& drafts);

 private:
  struct Entry {
    uint64_t hash = 0;
    int32_t length = 0;  // 0: empty
    int32_t end = 0;     // tokens [end - length, end), where they first came
  };
  // The entry of the last `length` of the first `end` tokens; made when there is none.
  const Entry& enter(std::span<const int32_t> tokens, int32_t end, int32_t length);
  void grow(size_t num_entries);

  int32_t min_length_, max_length_;
  std::vector<uint64_t> prefix_hashes_;  // [i]: of the first i tokens
  std::vector<uint64_t> powers_;         // [i]: kBase^i, up to max_length
  std::vector<Entry> table_;             // of a power of two; at most half full
  size_t num_entries_ = 0;
};

}  // namespace quire
