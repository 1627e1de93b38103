// Log-probabilities of prompt tokens: from the hidden states of a step to the host. Verbs: sample, fetch.
//
// Decides: how many rows of logits are made at once, and where their results lie. No log-softmax of its own: each row
// is sampled with its token given (SamplingRow::forced_token). Logits take the room in the arena that the dry run found
// for a step's samples; the rest is what `device_bytes` says, allocated when it is first asked for. Steps are fetched
// in their order, behind SampleOutput's event. Engine thread only.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "device/device.h"
#include "engine/scheduler.h"
#include "model/decoder.h"
#include "params/sampling.h"

namespace quire {

// A token of a step whose successor in the prompt is to be judged.
struct PromptRow {
  int32_t token_row = 0;  // of the step
  int32_t next_token = 0;
  int32_t num_logprobs = 0;
};

// One entry a PromptRow; valid until as many steps were run as may be in flight.
struct PromptScores {
  int32_t stride = 0;
  std::span<const int32_t> token_ids;  // [num_rows, stride]: the given token, then the most likely
  std::span<const float> logprobs;     // [num_rows, stride]
  std::span<const int32_t> ranks;      // [num_rows]
};

class PromptLogprobs {
 public:
  // `max_rows`: rows of logits that the arena has room for.
  PromptLogprobs(Device& device, int64_t max_rows, int64_t vocab_size, LogprobsMode mode)
      : device_(device), max_rows_(max_rows), vocab_size_(vocab_size), mode_(mode) {}

  // Rows of logits made at once, and what a step of `num_rows` rows takes on the device beside the arena.
  static int64_t rows_at_once(int64_t max_rows, int64_t vocab_size, int64_t stride);
  static size_t device_bytes(int64_t num_rows, int64_t num_at_once, int64_t stride);

  // The rows of the next step, often none. Throws OutOfMemory before anything is under way.
  void upload(std::span<const PromptRow> rows);
  // Puts the launches and copies for the uploaded rows, if there are any, on the stream.
  void run(const Decoder& decoder, const Tensor& hidden, const Ops& ops);
  // Behind the launches of a step, with rows or without.
  void start_fetch();
  // Of the oldest step that was started and not fetched; its copies have arrived.
  const PromptScores& fetch();
  void abandon();

 private:
  static constexpr size_t kSlots = Scheduler::kMaxInFlight;
  struct Slot {
    std::unique_ptr<HostBuffer> rows, results;
    int64_t num_rows = 0;
    PromptScores scores;
  };
  Device& device_;
  int64_t max_rows_, vocab_size_;
  LogprobsMode mode_;
  std::unique_ptr<Region> region_;
  std::array<Slot, kSlots> slots_;
  Slot* uploaded_ = nullptr;  // of the step that is about to run
  size_t first_ = 0, num_started_ = 0;
};

}  // namespace quire
