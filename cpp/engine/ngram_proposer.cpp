// A table with open addresses; see ngram_proposer.h.
#include "engine/ngram_proposer.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "base/hash.h"

namespace quire {
namespace {

constexpr uint64_t kBase = 0x9e3779b97f4a7c15;  // odd

}  // namespace

NgramProposer::NgramProposer(int32_t min_length, int32_t max_length)
    : min_length_(min_length), max_length_(max_length), prefix_hashes_(1, 0), powers_(1, 1) {
  QUIRE_CHECK(min_length >= 1 && min_length <= max_length, "lengths ", min_length, " to ", max_length);
  for (int32_t i = 0; i < max_length; ++i) powers_.push_back(powers_.back() * kBase);
}

void NgramProposer::propose(std::span<const int32_t> tokens, int32_t max_drafts, std::vector<int32_t>& drafts) {
  drafts.clear();
  const auto num_tokens = static_cast<int32_t>(tokens.size());
  const auto first_new = static_cast<int32_t>(prefix_hashes_.size());
  QUIRE_CHECK(first_new <= num_tokens + 1, num_tokens, " tokens after ", first_new - 1);
  const auto num_lengths = static_cast<size_t>(max_length_ - min_length_ + 1);
  grow(num_entries_ + num_lengths * static_cast<size_t>(num_tokens + 1 - first_new));
  int32_t found = num_tokens;
  for (int32_t end = first_new; end <= num_tokens; ++end) {
    const auto token = static_cast<uint64_t>(tokens[static_cast<size_t>(end) - 1]);
    prefix_hashes_.push_back(prefix_hashes_.back() * kBase + token + 1);
    for (int32_t length = std::min(max_length_, end); length >= min_length_; --length) enter(tokens, end, length);
  }
  for (int32_t length = std::min(max_length_, num_tokens); length >= min_length_ && found == num_tokens; --length) {
    found = enter(tokens, num_tokens, length).end;
  }
  const auto begin = tokens.begin() + found;
  drafts.assign(begin, begin + std::min(max_drafts, num_tokens - found));
}

const NgramProposer::Entry& NgramProposer::enter(std::span<const int32_t> tokens, int32_t end, int32_t length) {
  const auto last = static_cast<size_t>(end), count = static_cast<size_t>(length);
  const uint64_t run = prefix_hashes_[last] - prefix_hashes_[last - count] * powers_[count];
  const uint64_t hash = hash_combine(run, static_cast<uint64_t>(length));
  const size_t mask = table_.size() - 1;
  for (size_t i = hash & mask;; i = (i + 1) & mask) {
    Entry& entry = table_[i];
    if (entry.length == 0) {
      entry = {hash, length, end};
      ++num_entries_;
      return entry;
    }
    if (entry.hash != hash || entry.length != length) continue;
    const auto own = tokens.subspan(last - count, count);
    if (std::ranges::equal(own, tokens.subspan(static_cast<size_t>(entry.end) - count, count))) return entry;
  }
}

void NgramProposer::grow(size_t num_entries) {
  if (2 * num_entries <= table_.size()) return;
  std::vector<Entry> old(std::bit_ceil(std::max<size_t>(64, 2 * num_entries)));
  std::swap(old, table_);
  const size_t mask = table_.size() - 1;
  for (const Entry& entry : old) {
    if (entry.length == 0) continue;
    size_t i = entry.hash & mask;
    while (table_[i].length != 0) i = (i + 1) & mask;
    table_[i] = entry;
  }
}

}  // namespace quire
