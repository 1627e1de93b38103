// How tokens are guessed: the options of speculative decoding, checked, and the draft model's configuration.
//
// Decides: what a draft model must have in common with the model (its vocabulary). Nothing is loaded here.
#pragma once

#include <cstdint>

#include "engine/scheduler.h"
#include "model/model_config.h"
#include "quire/types.h"

namespace quire {

struct SpeculationConfig {
  enum class Method : uint8_t { none, ngram, draft_model };
  Method method = Method::none;
  int32_t num_tokens = 0;                  // guessed at most, in a step
  int32_t lookup_min = 0, lookup_max = 0;  // ngram
  int64_t max_num_seqs = 0;                // > 0: no guesses while more sequences run
  int64_t max_model_len = 0;               // longer sequences are not guessed
  ModelConfig draft;                       // with draft_model

  bool enabled() const { return method != Method::none; }
  bool has_draft_model() const { return method == Method::draft_model; }
};

// `model` and its max_model_len are resolved. Throws InvalidArgument.
SpeculationConfig resolve_speculation(const EngineOptions& options, const ModelConfig& model);
// What the scheduler has to know of it. More rows of logits than max_num_seqs are planned for up to 256 MiB of logits.
void apply_speculation(const SpeculationConfig& speculation, const ModelConfig& model, SchedulerOptions& scheduler);

}  // namespace quire
