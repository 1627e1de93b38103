// Buffers, launches and copies; see returned_states.h.
#include "engine/returned_states.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/dtype.h"

namespace quire {

void StateRows::append_hidden(size_t first, size_t num_rows, std::vector<float>& values) const {
  const size_t count = num_rows * static_cast<size_t>(hidden_width), begin = first * static_cast<size_t>(hidden_width);
  const std::byte* const from = hidden.data() + begin * dtype_bytes(dtype);
  const size_t old_size = values.size();
  values.resize(old_size + count);
  float* const to = values.data() + old_size;
  if (dtype == DType::f32) {
    std::memcpy(to, from, count * sizeof(float));
    return;
  }
  QUIRE_CHECK(dtype == DType::bf16 || dtype == DType::f16, "hidden states of dtype ", static_cast<int>(dtype));
  const auto* const bits = reinterpret_cast<const uint16_t*>(from);
  std::transform(bits, bits + count, to, dtype == DType::bf16 ? bf16_to_float : f16_to_float);
}

void StateRows::append_logits(size_t row, std::vector<float>& values) const {
  const auto width = static_cast<size_t>(vocab_size);
  const std::span<const float> own = logits.subspan(row * width, width);
  values.insert(values.end(), own.begin(), own.end());
}

void ReturnedStates::reserve_host(std::unique_ptr<HostBuffer>& buffer, size_t num_bytes) {
  if (buffer == nullptr || buffer->num_bytes() < num_bytes) buffer = device_.allocate_host(num_bytes);
}

void ReturnedStates::upload(const WantedStates& wanted, const Decoder& decoder) {
  QUIRE_CHECK(num_started_ < kSlots, num_started_, " steps are not fetched");
  Slot& slot = slots_[(first_ + num_started_) % kSlots];
  uploaded_ = &slot;
  slot.num_rows = std::ssize(wanted.token_rows);
  slot.samples = wanted.samples;
  slot.states = {.dtype = decoder.dtype(), .hidden_width = decoder.head_width(), .vocab_size = vocab_size_};
  if (!wanted.token_rows.empty()) {
    const size_t list_bytes = wanted.token_rows.size() * sizeof(int32_t);
    const size_t row_bytes = static_cast<size_t>(decoder.head_width()) * dtype_bytes(decoder.dtype());
    reserve_host(slot.rows, list_bytes);
    reserve_host(slot.hidden, wanted.token_rows.size() * row_bytes);
    if (region_ == nullptr || region_->num_bytes() < list_bytes) {
      std::unique_ptr<Region> region = device_.allocate(RegionTag::workspace, list_bytes);
      device_.synchronize();  // steps under way read the old one
      region_ = std::move(region);
    }
    std::memcpy(slot.rows->data(), wanted.token_rows.data(), list_bytes);
    slot.states.hidden = {slot.hidden->data(), wanted.token_rows.size() * row_bytes};
  }
  if (!wanted.samples.empty()) {
    const size_t count = wanted.samples.size() * static_cast<size_t>(vocab_size_);
    reserve_host(slot.logits, count * sizeof(float));
    slot.states.logits = {reinterpret_cast<const float*>(slot.logits->data()), count};
  }
}

void ReturnedStates::copy_hidden(const Decoder& decoder, const Tensor& hidden, const Ops& ops) {
  if (uploaded_ == nullptr || uploaded_->num_rows == 0) return;
  Slot& slot = *uploaded_;
  device_.copy_async(region_->data(), slot.rows->data(), static_cast<size_t>(slot.num_rows) * sizeof(int32_t),
                     device_.stream());
  const auto* const rows = reinterpret_cast<const int32_t*>(region_->data());
  std::byte* to = slot.hidden->data();
  for (int64_t begin = 0; begin < slot.num_rows; begin += max_rows_) {
    const Arena::Scope scope(ops.arena());
    const int64_t num_rows = std::min(max_rows_, slot.num_rows - begin);
    const Tensor states = decoder.head_input(hidden, rows + begin, num_rows, ops);
    const size_t num_bytes = static_cast<size_t>(num_rows * states.size(1)) * dtype_bytes(states.dtype);
    QUIRE_CHECK(states.row_stride() == states.size(1), "rows of ", states.size(1), " lie ", states.row_stride(),
                " apart");
    device_.copy_async(to, states.data, num_bytes, device_.stream());
    to += num_bytes;
  }
}

void ReturnedStates::copy_logits(const Tensor& logits) {
  if (uploaded_ == nullptr) return;
  const size_t row_bytes = static_cast<size_t>(vocab_size_) * sizeof(float);
  std::byte* to = uploaded_->samples.empty() ? nullptr : uploaded_->logits->data();
  for (const int32_t sample : uploaded_->samples) {
    device_.copy_async(to, logits.as<float>() + sample * logits.row_stride(), row_bytes, device_.stream());
    to += row_bytes;
  }
}

void ReturnedStates::start_fetch() {
  uploaded_ = nullptr;
  ++num_started_;
}

const StateRows& ReturnedStates::fetch() {
  QUIRE_CHECK(num_started_ > 0, "no step to fetch");
  const Slot& slot = slots_[first_];
  first_ = (first_ + 1) % kSlots;
  --num_started_;
  return slot.states;
}

void ReturnedStates::abandon() {
  uploaded_ = nullptr;
  num_started_ = 0;
}

}  // namespace quire
