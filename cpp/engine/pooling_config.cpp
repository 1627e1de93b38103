// Options to numbers; see pooling_config.h.
#include "engine/pooling_config.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "device/open_device.h"
#include "engine/engine_config.h"
#include "engine/pooling_memory.h"
#include "model/arch_registry.h"
#include "model/pooler.h"
#include "model/shard.h"

namespace quire {
namespace {

// On the host enough rows for matrix products at full speed, few enough that what passes from layer to layer stays in
// caches; elsewhere enough to fill the device.
constexpr int64_t kHostBatchedTokens = 1024, kDeviceBatchedTokens = 8192;
constexpr int32_t kScratchBlockSize = 16;

void apply_sequence_length(const SentenceTransformersConfig& files, ArchSpec& arch) {
  if (files.max_seq_length <= 0) return;
  if (arch.max_positions != 0 && arch.max_positions <= files.max_seq_length) return;
  arch.max_positions = files.max_seq_length;
  arch.max_positions_key = "max_seq_length";
}

void size_steps(const Device& device, PoolingConfig& config) {
  const EngineOptions& options = config.options;
  require(options.max_num_seqs >= 1, str_cat("max_num_seqs must be at least 1, got ", options.max_num_seqs));
  require(options.max_num_batched_tokens >= 0,
          str_cat("max_num_batched_tokens must be positive, got ", options.max_num_batched_tokens));
  config.max_num_seqs = options.max_num_seqs;
  const int64_t usual = device.is_asynchronous() ? kDeviceBatchedTokens : kHostBatchedTokens;
  config.max_num_batched_tokens = options.max_num_batched_tokens > 0 ? options.max_num_batched_tokens : usual;
  SchedulerOptions& capacity = config.capacity;
  capacity.block_size = kScratchBlockSize;
  capacity.max_num_seqs = config.max_num_seqs;
  capacity.max_model_len = config.model.max_model_len;
  capacity.max_num_batched_tokens = std::max(config.max_num_batched_tokens, config.model.max_model_len);
}

std::string mib(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  return text;
}

PoolingPlan plan_rank(const PoolingConfig& config, const Device& device) {
  const KernelTable& kernels = device.kernels();
  Weights weights;
  PoolingPlan plan;
  plan.weight_bytes =
      static_cast<int64_t>(place_weights(config.model.arch, config.model.weight_format(), kernels, nullptr, weights));
  plan.arena_bytes = static_cast<int64_t>(measure_pooling_arena(config, kernels, device.num_threads()));
  PoolingBuffers buffers;
  plan.workspace_bytes =
      plan.arena_bytes + static_cast<int64_t>(place_pooling_buffers(config, nullptr, buffers) +
                                              gemm_scratch_bytes(weights, kernels, config.options.batch_invariant));
  return plan;
}

// Ranks that share a device have equal shares of its memory.
void check_room(const PoolingConfig& config, const PoolingPlan& plan, const Device& device, int32_t num_sharing) {
  const DeviceMemory memory = device.memory();
  const int64_t limit = (device.is_asynchronous() ? memory.available_bytes : memory.total_bytes) / num_sharing;
  require(plan.weight_bytes + plan.workspace_bytes <= limit,
          str_cat("not enough memory on the device \"", device.name(), "\": weights take ", mib(plan.weight_bytes),
                  ", the workspace ", mib(plan.workspace_bytes), ", and ", mib(limit), " are there",
                  num_sharing > 1 ? " for each rank" : "", ". Lower max_model_len (", config.model.max_model_len,
                  ") or max_num_batched_tokens (", config.max_num_batched_tokens, "), or use dtype=\"bfloat16\"."));
}

void plan_memory(PoolingConfig& config, const Device& device) {
  const int32_t num_ranks = config.options.tensor_parallel_size;
  const int32_t num_sharing = num_ranks_of_a_device(config.options.device, num_ranks);
  std::vector<PoolingPlan> plans;
  for (int32_t rank = 0; rank < num_ranks; ++rank) {
    PoolingConfig part = config;
    part.model.arch = shard_arch(config.model.arch, rank, num_ranks);
    plans.push_back(plan_rank(part, device));
    check_room(config, plans.back(), device, num_sharing);
  }
  config.memory = plans.front();
  if (num_ranks > 1) config.memory_of_ranks = std::move(plans);
}

}  // namespace

int64_t num_scratch_blocks(const SchedulerOptions& capacity) {
  return capacity.max_num_batched_tokens / capacity.block_size + capacity.max_num_seqs;
}

PoolingConfig resolve_pooling_config(const std::filesystem::path& model_dir, const EngineOptions& options,
                                     const PoolerOptions& pooler, const Device& device) {
  check_ranks(options, device);
  const Json json = read_model_config(model_dir, options.config_overrides);
  const SentenceTransformersConfig files = read_sentence_transformers(model_dir);
  const bool int8_weights = wants_int8_weights(options, json, device);
  ArchSpec arch = arch_registry().build_pooling(json);
  apply_sequence_length(files, arch);
  resolve_pooler(json, files, pooler, arch);

  PoolingConfig config;
  config.options = options;
  config.pooler = pooler;
  if (pooler.task == "embed") {
    for (const SentenceTransformersConfig::Dense& dense : files.dense) config.dense_folders.push_back(dense.folder);
  }
  config.model = resolve_model_config(json, std::move(arch), model_dir, options.dtype, options.max_model_len);
  config.model.int8_weights = int8_weights;
  require(options.cpu_offload_gb <= 0.0 || !device.is_asynchronous(),
          "cpu_offload_gb is not supported for pooling models; use dtype=\"bfloat16\" or a smaller model");
  require(options.speculative_method.empty(),
          str_cat("speculative_method \"", options.speculative_method, "\" is for generation, not for pooling models"));
  size_steps(device, config);
  plan_memory(config, device);
  return config;
}

PoolingConfig config_of_rank(const PoolingConfig& config, int32_t rank) {
  PoolingConfig part = config;
  part.model.arch = shard_arch(config.model.arch, rank, config.options.tensor_parallel_size);
  part.memory = config.memory_of_ranks.at(static_cast<size_t>(rank));
  part.memory_of_ranks.clear();
  return part;
}

ModelInfo describe(const PoolingConfig& config, const Device& device) {
  const ArchSpec& arch = config.model.arch;
  ModelInfo info = describe_model(config.model, device);
  const std::vector<PoolingPlan> plans =
      config.memory_of_ranks.empty() ? std::vector<PoolingPlan>{config.memory} : config.memory_of_ranks;
  for (const PoolingPlan& plan : plans) {
    info.weight_bytes += plan.weight_bytes;
    info.workspace_bytes += plan.workspace_bytes;
    info.step_bytes += plan.arena_bytes;
    if (plans.size() == 1) continue;
    info.ranks.push_back({.weight_bytes = plan.weight_bytes, .workspace_bytes = plan.workspace_bytes});
  }
  info.tensor_parallel_size = config.options.tensor_parallel_size;
  info.block_size = config.capacity.block_size;
  info.max_num_seqs = config.max_num_seqs;
  info.max_num_batched_tokens = config.max_num_batched_tokens;
  info.pooling_type = pooling_name(arch.pooler);
  info.num_token_types = arch.num_token_types;
  info.pooling_activation = pooling_activation_name(arch.pooler.activation);
  info.num_outputs = arch.pooler.returned_token_ids.empty()
                         ? pooled_columns(arch, true)
                         : static_cast<int64_t>(arch.pooler.returned_token_ids.size());
  return info;
}

}  // namespace quire
