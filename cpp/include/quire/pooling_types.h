// The plain values of pooling: how hidden states become an answer. Standard library only.
//
// Names are those of vLLM's PoolerConfig and PoolingParams.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace quire {

// Which hidden states the answer is made of: the last token's, the mean, the first token's, each token's, those of the
// tokens that equal step_tag_id, or what the files of sentence-transformers name (the largest, weighted means, several
// ways joined).
enum class PoolingType : uint8_t { last, mean, cls, all, step, modes };

// What is done to each vector at the end: nothing, division by its length, probabilities.
enum class PoolingActivation : uint8_t { none, normalize, softmax, sigmoid };

// How a model pools. Empty: what the checkpoint says, else what is usual for its architecture and the task.
struct PoolerOptions {
  std::string task = "embed";     // embed, classify, score or reward
  std::string pooling_type = {};  // LAST, MEAN, CLS, ALL or STEP
  std::optional<bool> normalize = {};
  std::optional<bool> softmax = {};  // or sigmoid, where that is the model's; false: scores as they are
  std::optional<int32_t> step_tag_id = {};
  std::vector<int32_t> returned_token_ids = {};  // of the columns of the answer; empty: all
};

// How one request is answered.
struct PoolingParams {
  int32_t dimensions = 0;                   // > 0: the first of the vector, before it is normalized
  std::optional<bool> use_activation = {};  // false: without normalization, softmax or sigmoid; empty: the model's way
  std::string pooling_type = {};            // empty: the model's
  bool without_head = false;                // hidden states, though the model has a classifier
  // Tokens at the beginning that are read, but not pooled: a prompt of sentence-transformers that its files leave out.
  int64_t num_skipped_tokens = 0;
};

// One text, as tokens.
struct PoolingInput {
  std::vector<int32_t> token_ids = {};
  std::vector<int32_t> token_type_ids = {};  // empty: all 0
};

struct PoolingOutput {
  uint64_t request_id = 0;
  // One vector of `num_columns` (num_rows 0), or num_rows of them.
  std::vector<float> data = {};
  int64_t num_rows = 0, num_columns = 0;
  int64_t num_prompt_tokens = 0;
  double arrival = 0.0, first_scheduled = 0.0, finished = 0.0;  // seconds since the Unix epoch
  bool is_cancelled = false;
};
using PoolingCallback = std::function<void(PoolingOutput&&)>;

struct PoolingStats {
  int64_t num_running = 0, num_waiting = 0, num_steps = 0, prompt_tokens = 0, num_finished = 0;
  double step_seconds = 0.0;
};

}  // namespace quire
