// How much device memory an engine takes, and for what, before anything is made of it.
//
// Computed from shapes and the device's size, never from what happens to be free: two engines started at once get the
// sizes they would get one after the other. What does not fit is told at once, with every number and the ways out.
#pragma once

#include <cstdint>

#include "device/device.h"
#include "engine/scheduler.h"
#include "engine/speculation_config.h"
#include "model/layer_offload.h"
#include "model/model_config.h"
#include "quire/types.h"

namespace quire {

struct MemoryPlan {
  int64_t weight_bytes = 0;     // on the device: of offloaded layers, the slots they share
  int64_t workspace_bytes = 0;  // rope tables, batch arrays, arena
  int64_t kv_block_bytes = 0;
  int64_t num_blocks = 0;
  int64_t arena_bytes = 0;  // part of the workspace
  OffloadPlan offload;      // layers in host memory (cpu_offload_gb)
  // Of a draft model, beside the above; its cache has as many blocks, its scratch is the same arena.
  struct Draft {
    int64_t weight_bytes = 0;
    int64_t workspace_bytes = 0;  // rope tables, arrays of its steps, scratch of its products
    int64_t kv_block_bytes = 0;
  };
  Draft draft;

  int64_t all_block_bytes() const { return kv_block_bytes + draft.kv_block_bytes; }
  int64_t kv_bytes() const { return all_block_bytes() * num_blocks; }
  int64_t fixed_bytes() const { return weight_bytes + workspace_bytes + draft.weight_bytes + draft.workspace_bytes; }
};

// `model` may be a rank's part; `num_sharing` ranks share the device's memory.
// Throws InvalidArgument when the cache cannot hold one sequence of max_model_len, or when the device has not as much
// memory as all takes.
MemoryPlan plan_memory(const ModelConfig& model, const SchedulerOptions& scheduler, const EngineOptions& options,
                       const Device& device, const SpeculationConfig& speculation = {}, int32_t num_sharing = 1);

}  // namespace quire
