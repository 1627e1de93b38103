// From parameters to rows; see sampling_batch.h.
#include "engine/sampling_batch.h"

#include <algorithm>

namespace quire {
namespace {

bool needs_counts(const SamplingParams& params) {
  return params.repetition_penalty != 1.0f || params.frequency_penalty != 0.0f || params.presence_penalty != 0.0f;
}

// Whether the output so far ends with all of `word` but its last token.
bool completes_next(const Sequence& sequence, const std::vector<int32_t>& word) {
  const std::span<const int32_t> output = sequence.output();
  const size_t prefix = word.size() - 1;
  return output.size() >= prefix &&
         std::equal(word.begin(), word.end() - 1, output.end() - static_cast<int64_t>(prefix));
}

}  // namespace

const std::vector<TokenCount>& TokenCounts::update(const Sequence& sequence) {
  const auto num_prompt = static_cast<int32_t>(sequence.request->prompt.size());
  for (; num_counted_ < sequence.num_tokens(); ++num_counted_) {
    const int32_t token = sequence.tokens[static_cast<size_t>(num_counted_)];
    const auto [entry, is_new] = index_.try_emplace(token, counts_.size());
    if (is_new) counts_.push_back({.token_id = token, .output_count = 0});
    if (num_counted_ >= num_prompt) ++counts_[entry->second].output_count;
  }
  return counts_;
}

bool has_hooks(const SamplingParams& params) {
  return params.constraint != nullptr || !params.logits_processors.empty();
}

bool reads_output(const SamplingParams& params) {
  return has_hooks(params) || needs_counts(params) ||
         std::ranges::any_of(params.bad_words_token_ids, [](const auto& word) {
           return word.size() > 1;  // a single token is banned whatever was written
         });
}

bool changes_each_step(const SamplingParams& params) {
  return has_hooks(params) || needs_counts(params) || params.min_tokens > 0 || !params.bad_words_token_ids.empty() ||
         !params.logit_bias.empty() || !params.allowed_token_ids.empty();
}

void SamplingBatch::clear() {
  rows_.clear();
  device_rows_.clear();
  banned_ids_.clear();
  banned_ranges_.clear();
  biases_.clear();
  bias_ranges_.clear();
  masks_.clear();
  mask_indices_.clear();
  num_masks_ = 0;
  max_logprobs_ = -1;
}

void SamplingBatch::count(const SamplingParams& params) {
  max_logprobs_ = std::max(max_logprobs_, params.logprobs.value_or(-1));
}

void SamplingBatch::add(const Sequence& sequence, int32_t output_index, uint64_t seed, TokenCounts& counts) {
  const SamplingParams& params = sequence.request->params;
  SamplingRow row;
  row.temperature = params.temperature;
  row.top_k = params.top_k;
  row.top_p = params.top_p;
  row.min_p = params.min_p;
  row.repetition_penalty = params.repetition_penalty;
  row.frequency_penalty = params.frequency_penalty;
  row.presence_penalty = params.presence_penalty;
  row.seed = seed;
  row.output_index = static_cast<uint32_t>(output_index);
  row.num_logprobs = params.logprobs.value_or(-1);
  row.allowed_ids = params.allowed_token_ids.data();
  row.num_allowed_ids = static_cast<int32_t>(params.allowed_token_ids.size());
  if (needs_counts(params)) {
    const std::vector<TokenCount>& entries = counts.update(sequence);
    row.counts = entries.data();
    row.num_counts = static_cast<int32_t>(entries.size());
  }
  const size_t banned_begin = banned_ids_.size();
  for (const std::vector<int32_t>& word : params.bad_words_token_ids) {
    if (completes_next(sequence, word)) banned_ids_.push_back(word.back());
  }
  if (output_index < params.min_tokens) {
    const std::vector<int32_t>& eos = sequence.request->eos_token_ids;
    banned_ids_.insert(banned_ids_.end(), eos.begin(), eos.end());
    banned_ids_.insert(banned_ids_.end(), params.stop_token_ids.begin(), params.stop_token_ids.end());
  }
  banned_ranges_.push_back({banned_begin, banned_ids_.size()});
  const size_t bias_begin = biases_.size();
  for (const auto& [id, bias] : params.logit_bias) biases_.push_back({.token_id = id, .bias = bias});
  bias_ranges_.push_back({bias_begin, biases_.size()});
  mask_indices_.push_back(params.constraint != nullptr ? num_masks_++ : -1);
  rows_.push_back(row);
  device_rows_.push_back(sequence.row);
}

void SamplingBatch::finish(int64_t vocab_size) {
  vocab_size_ = vocab_size;
  const auto num_words = static_cast<size_t>(vocab_size + 31) / 32;
  masks_.assign(static_cast<size_t>(num_masks_) * num_words, 0u);
  for (size_t i = 0; i < rows_.size(); ++i) {
    rows_[i].banned_ids = banned_ids_.data() + banned_ranges_[i].begin;
    rows_[i].num_banned_ids = static_cast<int32_t>(banned_ranges_[i].end - banned_ranges_[i].begin);
    rows_[i].biases = biases_.data() + bias_ranges_[i].begin;
    rows_[i].num_biases = static_cast<int32_t>(bias_ranges_[i].end - bias_ranges_[i].begin);
    if (mask_indices_[i] >= 0) {
      rows_[i].allowed_mask = masks_.data() + static_cast<size_t>(mask_indices_[i]) * num_words;
    }
  }
}

std::span<uint32_t> SamplingBatch::mask(size_t row) {
  const size_t num_words = masks_.size() / static_cast<size_t>(num_masks_);
  return std::span(masks_).subspan(static_cast<size_t>(mask_indices_[row]) * num_words, num_words);
}

}  // namespace quire
