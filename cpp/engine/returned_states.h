// Hidden states and logits that requests want back: from a step's tensors to the host. Verbs: forward, fetch.
//
// Decides: how many rows are normed at once, and where they lie. A hidden state is the head's own input
// (Decoder::head_input); its rows take the room in the arena that the dry run found for a step's logits. The rest is a
// list of rows on the device and host buffers, made when they are first asked for. Steps without any cost nothing.
// Steps are fetched in their order, behind SampleOutput's event. Engine thread only.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "device/device.h"
#include "engine/scheduler.h"
#include "model/decoder.h"

namespace quire {

// What a step is to give back.
struct WantedStates {
  std::vector<int32_t> token_rows;  // of the step: whose hidden states
  std::vector<int32_t> samples;     // whose logits
  bool empty() const { return token_rows.empty() && samples.empty(); }
  void clear() {
    token_rows.clear();
    samples.clear();
  }
};

// One row a wish; valid until as many steps were run as may be in flight.
struct StateRows {
  DType dtype = DType::f32;
  int64_t hidden_width = 0, vocab_size = 0;
  std::span<const std::byte> hidden;  // [token_rows, hidden_width] in the model's dtype
  std::span<const float> logits;      // [samples, vocab_size]

  // Both append to `values`, as float32.
  void append_hidden(size_t first, size_t num_rows, std::vector<float>& values) const;
  void append_logits(size_t row, std::vector<float>& values) const;
};

class ReturnedStates {
 public:
  // `max_rows`: rows of logits that the arena has room for.
  ReturnedStates(Device& device, int64_t max_rows, int64_t vocab_size)
      : device_(device), max_rows_(max_rows), vocab_size_(vocab_size) {}

  // Of the next step, often nothing. Throws OutOfMemory before anything is under way.
  void upload(const WantedStates& wanted, const Decoder& decoder);
  bool empty() const { return uploaded_ == nullptr || (uploaded_->num_rows == 0 && uploaded_->samples.empty()); }
  // Put copies on the stream: of hidden states before the step's logits are made, of logits before anybody changes
  // them.
  void copy_hidden(const Decoder& decoder, const Tensor& hidden, const Ops& ops);
  void copy_logits(const Tensor& logits);
  // Behind the launches of a step, with wishes or without.
  void start_fetch();
  // Of the oldest step that was started and not fetched; its copies have arrived.
  const StateRows& fetch();
  void abandon();

 private:
  static constexpr size_t kSlots = Scheduler::kMaxInFlight;
  struct Slot {
    std::unique_ptr<HostBuffer> rows, hidden, logits;
    int64_t num_rows = 0;
    std::vector<int32_t> samples;
    StateRows states;
  };
  void reserve_host(std::unique_ptr<HostBuffer>& buffer, size_t num_bytes);

  Device& device_;
  int64_t max_rows_, vocab_size_;
  std::unique_ptr<Region> region_;  // the list of rows
  std::array<Slot, kSlots> slots_;
  Slot* uploaded_ = nullptr;  // of the step that is about to run
  size_t first_ = 0, num_started_ = 0;
};

}  // namespace quire
