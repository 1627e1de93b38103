// From a model directory and EngineOptions to the numbers an engine is built with, its memory included.
//
// Memory is computed from shapes, never measured from what the whole machine uses: two engines started at once get the
// sizes they would get one after the other. Nothing is loaded here; plan_model() shows the same numbers to users.
#pragma once

#include <filesystem>

#include "device/device.h"
#include "engine/memory_plan.h"
#include "engine/scheduler.h"
#include "engine/speculation_config.h"
#include "model/model_config.h"
#include "model/weights.h"
#include "params/sampling.h"
#include "quire/types.h"

namespace quire {

struct EngineConfig {
  ModelConfig model;
  SchedulerOptions scheduler;
  MemoryPlan memory;                        // of the first rank
  std::vector<MemoryPlan> memory_of_ranks;  // where there are several
  SpeculationConfig speculation;
  EngineOptions options;
  // Captured decode steps: batch sizes (none: no graphs), and the longest sequence of a step that is replayed.
  std::vector<int32_t> graph_sizes;
  int64_t graph_max_kv_len = 0;
  LogprobsMode logprobs_mode = LogprobsMode::raw_logprobs;
  bool by_priority = false;  // requests may bring a priority
};

// Throws InvalidArgument: a bad option, a model that is not supported, or too little memory for one sequence of
// max_model_len (with the numbers and three ways out).
EngineConfig resolve_engine_config(const std::filesystem::path& model_dir, const EngineOptions& options,
                                   const Device& device);
// What ranks cannot do together yet: throws InvalidArgument or NotSupported. For pooling models too.
void check_ranks(const EngineOptions& options, const Device& device);
// The configuration of one rank's worker.
EngineConfig config_of_rank(const EngineConfig& config, int32_t rank);
// The devices that the options name, one a rank; throws InvalidArgument or NotSupported with what is missing.
std::vector<std::unique_ptr<Device>> make_devices(const EngineOptions& options);
// The first of them; throws InvalidArgument or NotSupported with what is missing.
std::unique_ptr<Device> make_device(const EngineOptions& options);
// EngineOptions::quantization. Throws InvalidArgument: it is unknown, or the checkpoint is quantized in another way;
// NotSupported: the device has no such products.
bool wants_int8_weights(const EngineOptions& options, const Json& config, const Device& device);
// What generating and pooling models have in common, without sizes.
ModelInfo describe_model(const ModelConfig& model, const Device& device);
ModelInfo describe(const EngineConfig& config, const Device& device);

}  // namespace quire
