// From a model directory to the numbers a pooling engine is built with, its memory included.
//
// As engine_config.h for what is pooled: whole texts in a step, no KV cache. Nothing is loaded here.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "device/device.h"
#include "engine/scheduler.h"
#include "model/model_config.h"
#include "quire/pooling_types.h"
#include "quire/types.h"

namespace quire {

// Bytes of one rank.
struct PoolingPlan {
  int64_t weight_bytes = 0, workspace_bytes = 0, arena_bytes = 0;
};

struct PoolingConfig {
  ModelConfig model;
  EngineOptions options;
  PoolerOptions pooler;
  std::vector<std::string> dense_folders;  // of sentence-transformers
  // A step has at most max_num_batched_tokens tokens, unless one text alone is longer.
  int64_t max_num_batched_tokens = 0;
  int64_t max_num_seqs = 0;
  // What memory is planned for: the longest text, and any step.
  SchedulerOptions capacity;
  PoolingPlan memory;                        // of the first rank
  std::vector<PoolingPlan> memory_of_ranks;  // where there are several
};

// Throws InvalidArgument: a bad option, a model or task that is not supported, too little memory.
PoolingConfig resolve_pooling_config(const std::filesystem::path& model_dir, const EngineOptions& options,
                                     const PoolerOptions& pooler, const Device& device);
// The configuration of one rank's worker.
PoolingConfig config_of_rank(const PoolingConfig& config, int32_t rank);
ModelInfo describe(const PoolingConfig& config, const Device& device);

// Pages of the keys and values of one layer and step: those of the longest step, each text begun on a page of its own.
int64_t num_scratch_blocks(const SchedulerOptions& capacity);

}  // namespace quire
