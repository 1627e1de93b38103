// Counts finished requests by how they ended, and sorts their sizes and times into buckets.
//
// Decides: which figures there are, their names (vLLM's) and buckets. Does not know: clocks, the scheduler. Engine
// thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/figures.h"
#include "quire/types.h"

namespace quire {

class RequestMetrics {
 public:
  explicit RequestMetrics(int64_t max_model_len);

  void add_step(int64_t num_tokens);
  // Between two deliveries of tokens to a sequence.
  void add_token_gap(double seconds);
  void add_finished(const RequestOutput& output, const SamplingParams& params);
  // Counters of Stats, gauges, and what was collected here.
  std::vector<Metric> metrics(const Stats& stats) const;

 private:
  enum Figure : uint8_t {
    kIterationTokens,
    kPromptTokens,
    kGenerationTokens,
    kMaxTokens,
    kSequences,
    kTimeToFirstToken,
    kInterTokenLatency,
    kTimePerOutputToken,
    kLatency,
    kQueueTime,
    kInferenceTime,
    kPrefillTime,
    kDecodeTime,
    kNumFigures
  };
  void observe(Figure figure, double value);

  std::array<Metric, kNumFigures> histograms_;
  FinishedCounts finished_ = {};
  std::vector<double> accepted_by_position_ = {};  // guesses of speculative decoding that were right
};

}  // namespace quire
