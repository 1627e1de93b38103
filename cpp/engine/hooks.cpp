// Calls into the caller's code; see hooks.h.
#include "engine/hooks.h"

#include <algorithm>
#include <exception>
#include <limits>

#include "engine/worker.h"

namespace quire {
namespace {

bool has_any_bit(std::span<const uint32_t> mask, int64_t vocab_size) {
  const auto num_full = static_cast<size_t>(vocab_size / 32);
  if (std::ranges::any_of(mask.first(num_full), [](uint32_t word) { return word != 0; })) return true;
  return vocab_size % 32 != 0 && (mask[num_full] & ((1u << vocab_size % 32) - 1)) != 0;
}

void keep_masked(std::span<const uint32_t> mask, std::span<float> logits) {
  for (size_t i = 0; i < logits.size(); ++i) {
    if ((mask[i / 32] >> i % 32 & 1u) == 0) logits[i] = -std::numeric_limits<float>::infinity();
  }
}

TokenConstraint* constraint_of(const HookedRow* row) { return row->sequence->request->params.constraint.get(); }

}  // namespace

void StepHooks::add(const Sequence& sequence, int32_t sample, size_t sampling_row, std::shared_ptr<void>& state) {
  Sequence* own = sequence.request->sequences[static_cast<size_t>(sequence.index)].get();
  rows_.push_back({.sequence = own, .sample = sample, .sampling_row = sampling_row, .state = &state, .error = {}});
}

template <typename Use>
void StepHooks::for_each_group(bool with_host_choices, const Use& use) {
  const auto group_of = [](const HookedRow* row) { return constraint_of(row)->group(); };
  constrained_.clear();
  for (HookedRow& row : rows_) {
    const bool takes_part = constraint_of(&row) != nullptr && row.error.empty() && !row.sequence->finished() &&
                            (with_host_choices || !row.sequence->request->host_chooses);
    if (takes_part) constrained_.push_back(&row);
  }
  std::ranges::stable_sort(constrained_, std::less<>(), group_of);
  for (auto begin = constrained_.begin(); begin != constrained_.end();) {
    const void* const group = group_of(*begin);
    const auto end = std::find_if(begin, constrained_.end(), [&](HookedRow* row) { return group_of(row) != group; });
    const std::span<HookedRow*> rows(begin, end);
    try {
      use(rows, *constraint_of(rows.front()));
    } catch (const std::exception& error) {
      for (HookedRow* row : rows) row->error = str_cat("the request's constraint failed: ", error.what());
    }
    begin = end;
  }
}

void StepHooks::fill_masks(SamplingBatch& sampling) {
  for_each_group(true, [&](std::span<HookedRow*> rows, TokenConstraint& constraint) {
    mask_rows_.clear();
    for (HookedRow* row : rows) {
      if (*row->state == nullptr) *row->state = constraint_of(row)->start();
      mask_rows_.push_back({.state = row->state->get(),
                            .prompt = row->sequence->request->prompt,
                            .output = row->sequence->output(),
                            .mask = sampling.mask(row->sampling_row)});
    }
    constraint.fill_masks(mask_rows_);
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i]->error = mask_rows_[i].error;
      if (rows[i]->error.empty() && !has_any_bit(mask_rows_[i].mask, sampling.vocab_size())) {
        rows[i]->error = "the request's constraint lets no token follow";
      }
    }
  });
  for (const HookedRow& row : rows_) {
    if (!row.error.empty()) std::ranges::fill(sampling.mask(row.sampling_row), ~0u);
  }
}

void StepHooks::process_logits(Worker& worker, SamplingBatch& sampling) {
  for (HookedRow& row : rows_) {
    const std::vector<LogitsProcessor>& processors = row.sequence->request->params.logits_processors;
    const bool masks_logits = row.sequence->request->host_chooses && constraint_of(&row) != nullptr;
    if ((processors.empty() && !masks_logits) || !row.error.empty()) continue;
    const std::span<float> logits = worker.read_logits(row.sample, logits_copy_);
    try {
      for (const LogitsProcessor& process : processors) {
        process(row.sequence->request->prompt, row.sequence->output(), logits);
      }
    } catch (const std::exception& error) {
      row.error = str_cat("a logits processor of the request failed: ", error.what());
    }
    if (masks_logits) keep_masked(sampling.mask(row.sampling_row), logits);
    worker.write_logits(row.sample, logits);
  }
}

void StepHooks::commit(std::span<const int32_t> sampled) {
  for_each_group(false, [&](std::span<HookedRow*> rows, TokenConstraint& constraint) {
    tokens_.clear();
    for (const HookedRow* row : rows) {
      tokens_.push_back({.state = row->state->get(), .token_id = sampled[static_cast<size_t>(row->sample)]});
    }
    constraint.commit(tokens_);
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i]->error = tokens_[i].error;
      rows[i]->sequence->is_complete = tokens_[i].is_last;
    }
  });
}

}  // namespace quire
