// What was sampled, on its way from the device to the host. Verbs: sample, fetch.
//
// Kernels write to one set of buffers on the device; behind each step a copy brings what was asked for into a host
// buffer of its own, and an event tells when it is there. Steps are fetched in their order. Engine thread only.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "device/device.h"
#include "engine/scheduler.h"

namespace quire {

// One entry a row of the batch; valid until as many steps were started as may be in flight.
struct SampledTokens {
  std::span<const int32_t> token_ids;
  int32_t logprobs_stride = 0;             // 0: nobody asked for any
  std::span<const int32_t> logprob_ids;    // [num_rows, logprobs_stride]
  std::span<const float> logprobs;         // [num_rows, logprobs_stride]
  std::span<const int32_t> sampled_ranks;  // [num_rows]
};

class SampleOutput {
 public:
  SampleOutput(Device& device, int64_t max_rows);

  // Entries a row for steps that ask for up to `max_logprobs` (-1: none). Few different ones, so that few graphs are
  // captured.
  static int32_t stride_for(int32_t max_logprobs);
  // Makes room for the next step; true when the buffers on the device moved, which no captured graph survives that
  // writes to them.
  bool reserve(int32_t logprobs_stride);

  // Sets the output fields.
  void write_to(int32_t logprobs_stride, SamplingParamsBlock& block) const;
  int32_t* token_ids() const { return token_ids_; }

  // Behind the launches of a step: puts its copies on the stream.
  void start_fetch(int64_t num_rows, int32_t logprobs_stride);
  // Waits for the oldest step that was started and not fetched.
  const SampledTokens& fetch();
  // Forgets what was started.
  void abandon();

 private:
  static constexpr size_t kSlots = Scheduler::kMaxInFlight;
  struct Slot {
    std::unique_ptr<HostBuffer> buffer;
    std::unique_ptr<Event> done;
    SampledTokens tokens;
  };

  Device& device_;
  int64_t max_rows_;
  int32_t max_stride_ = 0;
  std::unique_ptr<Region> region_;
  int32_t *token_ids_ = nullptr, *ranks_ = nullptr, *logprob_ids_ = nullptr;
  float* logprobs_ = nullptr;
  std::array<Slot, kSlots> slots_;
  size_t first_ = 0, num_started_ = 0;
};

}  // namespace quire
