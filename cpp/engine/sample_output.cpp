// Buffers and copies; see sample_output.h.
#include "engine/sample_output.h"

#include <bit>

#include "base/check.h"
#include "engine/sampled_layout.h"

namespace quire {
namespace {

constexpr int32_t kFirstStride = 32;  // more than the 20 log-probabilities that Python allows by default

}  // namespace

SampleOutput::SampleOutput(Device& device, int64_t max_rows) : device_(device), max_rows_(max_rows) {
  SampledLayout layout;
  const size_t num_bytes = lay_out(max_rows, kFirstStride, nullptr, layout);
  for (Slot& slot : slots_) {
    slot.done = device.make_event();
    slot.buffer = device.allocate_host(num_bytes);
  }
  reserve(kFirstStride);
}

int32_t SampleOutput::stride_for(int32_t max_logprobs) {
  if (max_logprobs < 0) return 0;
  return static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(max_logprobs) + 1));
}

bool SampleOutput::reserve(int32_t logprobs_stride) {
  SampledLayout layout;
  const size_t num_bytes = lay_out(max_rows_, logprobs_stride, nullptr, layout);
  Slot& next = slots_[(first_ + num_started_) % kSlots];
  if (next.buffer == nullptr || next.buffer->num_bytes() < num_bytes) next.buffer = device_.allocate_host(num_bytes);
  if (region_ != nullptr && logprobs_stride <= max_stride_) return false;
  std::unique_ptr<Region> region = device_.allocate(RegionTag::workspace, num_bytes);
  device_.synchronize();  // steps under way write to the old ones
  region_ = std::move(region);
  lay_out(max_rows_, logprobs_stride, region_->data(), layout);
  token_ids_ = layout.token_ids;
  ranks_ = layout.ranks;
  logprob_ids_ = layout.logprob_ids;
  logprobs_ = layout.logprobs;
  max_stride_ = logprobs_stride;
  return true;
}

void SampleOutput::write_to(int32_t logprobs_stride, SamplingParamsBlock& block) const {
  QUIRE_CHECK(logprobs_stride <= max_stride_, logprobs_stride, " log-probabilities a row, room for ", max_stride_);
  block.token_ids = token_ids_;
  block.logprobs_stride = logprobs_stride;
  block.logprob_ids = logprob_ids_;
  block.logprobs = logprobs_;
  block.sampled_rank = ranks_;
}

void SampleOutput::start_fetch(int64_t num_rows, int32_t logprobs_stride) {
  QUIRE_CHECK(num_started_ < kSlots, num_started_, " steps are not fetched");
  Slot& slot = slots_[(first_ + num_started_++) % kSlots];
  SampledLayout host;
  lay_out(max_rows_, logprobs_stride, slot.buffer->data(), host);
  const auto rows = static_cast<size_t>(num_rows);
  const size_t entries = rows * static_cast<size_t>(logprobs_stride);
  const auto copy = [&](auto* to, const auto* from, size_t count) {
    if (count > 0) device_.copy_async(to, from, count * sizeof(*from), device_.stream());
  };
  copy(host.token_ids, token_ids_, rows);
  if (logprobs_stride > 0) copy(host.ranks, ranks_, rows);
  copy(host.logprob_ids, logprob_ids_, entries);
  copy(host.logprobs, logprobs_, entries);
  slot.done->record(device_.stream());
  slot.tokens = {.token_ids = {host.token_ids, rows},
                 .logprobs_stride = logprobs_stride,
                 .logprob_ids = {host.logprob_ids, entries},
                 .logprobs = {host.logprobs, entries},
                 .sampled_ranks = {host.ranks, logprobs_stride > 0 ? rows : 0}};
}

const SampledTokens& SampleOutput::fetch() {
  QUIRE_CHECK(num_started_ > 0, "no step to fetch");
  Slot& slot = slots_[first_];
  slot.done->wait();
  first_ = (first_ + 1) % kSlots;
  --num_started_;
  return slot.tokens;
}

void SampleOutput::abandon() { num_started_ = 0; }

}  // namespace quire
