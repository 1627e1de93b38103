// Buffers and launches; see prompt_logprobs.h.
#include "engine/prompt_logprobs.h"

#include <algorithm>

#include "base/check.h"
#include "engine/placer.h"
#include "engine/sampled_layout.h"

namespace quire {
namespace {

// Of one launch: results on the device (32 MiB), and logits (128 MiB), of which more gain nothing.
constexpr int64_t kMaxEntries = int64_t{4} << 20, kMaxLogits = int64_t{32} << 20;

// What a step's rows ask for; the same on the device and in a host buffer.
struct Questions {
  int32_t* token_rows = nullptr;
  SamplingRow* rows = nullptr;
};
size_t lay_out(int64_t num_rows, std::byte* base, Questions& questions) {
  Placer placer(base);
  questions.token_rows = placer.take<int32_t>(num_rows);
  questions.rows = placer.take<SamplingRow>(num_rows);
  return placer.used();
}

}  // namespace

int64_t PromptLogprobs::rows_at_once(int64_t max_rows, int64_t vocab_size, int64_t stride) {
  return std::clamp<int64_t>(std::min(kMaxEntries / stride, kMaxLogits / vocab_size), 1, max_rows);
}

size_t PromptLogprobs::device_bytes(int64_t num_rows, int64_t num_at_once, int64_t stride) {
  Questions questions;
  SampledLayout answers;
  return lay_out(num_rows, nullptr, questions) + lay_out(num_at_once, stride, nullptr, answers);
}

void PromptLogprobs::upload(std::span<const PromptRow> rows) {
  QUIRE_CHECK(num_started_ < kSlots, num_started_, " steps are not fetched");
  Slot& slot = slots_[(first_ + num_started_) % kSlots];
  uploaded_ = &slot;
  slot.num_rows = std::ssize(rows);
  slot.scores = {};
  if (rows.empty()) return;
  int32_t most = 0;
  for (const PromptRow& row : rows) most = std::max(most, row.num_logprobs);
  slot.scores.stride = most + 1;

  const auto reserve_host = [&](std::unique_ptr<HostBuffer>& buffer, size_t num_bytes) {
    if (buffer == nullptr || buffer->num_bytes() < num_bytes) buffer = device_.allocate_host(num_bytes);
  };
  Questions questions;
  SampledLayout answers;
  reserve_host(slot.rows, lay_out(slot.num_rows, nullptr, questions));
  reserve_host(slot.results, lay_out(slot.num_rows, slot.scores.stride, nullptr, answers));
  const int64_t num_at_once = rows_at_once(max_rows_, vocab_size_, slot.scores.stride);
  const size_t num_bytes = device_bytes(slot.num_rows, num_at_once, slot.scores.stride);
  if (region_ == nullptr || region_->num_bytes() < num_bytes) {
    std::unique_ptr<Region> region = device_.allocate(RegionTag::workspace, num_bytes);
    device_.synchronize();  // steps under way write to the old one
    region_ = std::move(region);
  }
  lay_out(slot.num_rows, slot.rows->data(), questions);
  for (size_t i = 0; i < rows.size(); ++i) {
    questions.token_rows[i] = rows[i].token_row;
    SamplingRow row;
    row.temperature = 0.0f;
    row.forced_token = rows[i].next_token;
    row.num_logprobs = rows[i].num_logprobs;
    questions.rows[i] = row;
  }
}

void PromptLogprobs::run(const Decoder& decoder, const Tensor& hidden, const Ops& ops) {
  if (uploaded_ == nullptr || uploaded_->num_rows == 0) return;
  Slot& slot = *uploaded_;
  const int64_t stride = slot.scores.stride, num_at_once = rows_at_once(max_rows_, vocab_size_, stride);
  Questions questions;
  SampledLayout device_answers, host;
  const size_t question_bytes = lay_out(slot.num_rows, region_->data(), questions);
  lay_out(num_at_once, stride, region_->data() + question_bytes, device_answers);
  lay_out(slot.num_rows, stride, slot.results->data(), host);
  device_.copy_async(region_->data(), slot.rows->data(), question_bytes, device_.stream());
  const auto copy = [&](auto* to, const auto* from, int64_t count) {
    device_.copy_async(to, from, static_cast<size_t>(count) * sizeof(*from), device_.stream());
  };
  for (int64_t begin = 0; begin < slot.num_rows; begin += num_at_once) {
    const int64_t num_rows = std::min(num_at_once, slot.num_rows - begin);
    const Arena::Scope scope(ops.arena());
    const Tensor logits = decoder.logits(hidden, questions.token_rows + begin, num_rows, ops);
    if (!ops.is_first_rank()) continue;  // it helped to make them
    const size_t workspace_bytes =
        ops.kernels().sampling_workspace_bytes(num_rows, logits.size(1), device_.num_threads());
    ops.kernels().sample({.logits = logits.as<float>(),
                          .logits_stride = logits.row_stride(),
                          .vocab_size = static_cast<int32_t>(logits.size(1)),
                          .num_rows = static_cast<int32_t>(num_rows),
                          .rows = questions.rows + begin,
                          .token_ids = device_answers.token_ids,
                          .logprobs_mode = mode_,
                          .logprobs_stride = static_cast<int32_t>(stride),
                          .logprob_ids = device_answers.logprob_ids,
                          .logprobs = device_answers.logprobs,
                          .sampled_rank = device_answers.ranks,
                          .workspace = ops.arena().allocate_bytes(workspace_bytes),
                          .workspace_bytes = workspace_bytes},
                         device_.stream());
    copy(host.ranks + begin, device_answers.ranks, num_rows);
    copy(host.logprob_ids + begin * stride, device_answers.logprob_ids, num_rows * stride);
    copy(host.logprobs + begin * stride, device_answers.logprobs, num_rows * stride);
  }
  const auto entries = static_cast<size_t>(slot.num_rows * stride);
  slot.scores.token_ids = {host.logprob_ids, entries};
  slot.scores.logprobs = {host.logprobs, entries};
  slot.scores.ranks = {host.ranks, static_cast<size_t>(slot.num_rows)};
}

void PromptLogprobs::start_fetch() {
  uploaded_ = nullptr;
  ++num_started_;
}

const PromptScores& PromptLogprobs::fetch() {
  QUIRE_CHECK(num_started_ > 0, "no step to fetch");
  Slot& slot = slots_[first_];
  first_ = (first_ + 1) % kSlots;
  --num_started_;
  return slot.scores;
}

void PromptLogprobs::abandon() {
  uploaded_ = nullptr;
  num_started_ = 0;
}

}  // namespace quire
