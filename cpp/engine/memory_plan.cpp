// Sizes and refusals; see memory_plan.h.
#include "engine/memory_plan.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "base/log.h"
#include "engine/draft_model.h"
#include "engine/row_state.h"
#include "engine/step_memory.h"

namespace quire {
namespace {

constexpr int64_t kDefaultHostKvCacheBytes = int64_t{4} << 30;  // vLLM's default on CPUs

std::string gib(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f GiB", static_cast<double>(bytes) / (int64_t{1} << 30));
  return text;
}

int64_t max_blocks_per_seq(const SchedulerOptions& scheduler) {
  return (scheduler.max_model_len + scheduler.block_size - 1) / scheduler.block_size;
}

// An equal share for every rank on the device.
DeviceMemory memory_of_rank(const Device& device, int32_t num_sharing) {
  DeviceMemory memory = device.memory();
  memory.total_bytes /= num_sharing;
  memory.available_bytes /= num_sharing;
  return memory;
}

// Nothing where weights are in host memory anyway.
OffloadPlan offload_plan(const ModelConfig& model, const EngineOptions& options, const Device& device) {
  if (!device.is_asynchronous()) return {};
  constexpr double kMostGb = 1e6;  // more than any layers have
  const double num_bytes = std::min(options.cpu_offload_gb, kMostGb) * static_cast<double>(int64_t{1} << 30);
  OffloadPlan plan = plan_offload(model.arch, model.weight_format(), device.kernels(), static_cast<int64_t>(num_bytes));
  if (!plan.empty() && plan.total_slot_bytes() >= plan.host_bytes()) {
    log_warning("cpu_offload_gb=", options.cpu_offload_gb, " keeps ", plan.layers.size(),
                " of the layers in host memory and needs ", plan.num_slots,
                " layer slots on the device for them: it saves no device memory and costs time. Ask for more than ",
                gib(static_cast<int64_t>(plan.total_slot_bytes())), ".");
  }
  return plan;
}

// What the cache may take: the caller's exact number, else what max_num_seqs sequences can use, within the engine's
// share of the device. On the host, whose memory belongs to others too, that is a share of what is free, capped by
// VLLM_CPU_KVCACHE_SPACE (GiB, default 4).
int64_t kv_budget_bytes(const MemoryPlan& plan, const SchedulerOptions& scheduler, const EngineOptions& options,
                        const Device& device, const DeviceMemory& memory, int32_t num_sharing) {
  if (options.kv_cache_memory_bytes > 0) return options.kv_cache_memory_bytes;
  const int64_t wanted = max_blocks_per_seq(scheduler) * options.max_num_seqs * plan.all_block_bytes();
  const auto rest_of = [&](int64_t bytes) {
    return static_cast<int64_t>(static_cast<double>(bytes) * options.gpu_memory_utilization) - plan.fixed_bytes();
  };
  if (device.is_asynchronous()) return std::min(wanted, rest_of(memory.total_bytes));
  int64_t cap = kDefaultHostKvCacheBytes;
  if (const char* space = std::getenv("VLLM_CPU_KVCACHE_SPACE")) {
    const double requested = std::atof(space);
    if (requested > 0) cap = static_cast<int64_t>(requested * static_cast<double>(int64_t{1} << 30));
  }
  return std::min({wanted, cap / num_sharing, rest_of(memory.available_bytes)});
}

std::string sizes_text(const MemoryPlan& plan, int64_t block_size, const DeviceMemory& memory) {
  return str_cat("Weights take ", gib(plan.weight_bytes + plan.draft.weight_bytes), ", workspace ",
                 gib(plan.workspace_bytes + plan.draft.workspace_bytes), ", KV cache ",
                 plan.all_block_bytes() / block_size, " bytes a token; ", gib(memory.available_bytes), " of ",
                 gib(memory.total_bytes), " are free, ", gib(memory.total_bytes - memory.available_bytes),
                 " are held by others");
}

void refuse_short_cache(const MemoryPlan& plan, int64_t num_blocks, const ModelConfig& model,
                        const SchedulerOptions& scheduler, const EngineOptions& options, const DeviceMemory& memory) {
  throw InvalidArgument(
      str_cat("To serve at least one request with the models's max seq len (", model.max_model_len, "), (",
              gib(max_blocks_per_seq(scheduler) * plan.all_block_bytes()),
              " KV cache is needed, which is larger than the available KV cache memory (",
              gib(num_blocks * plan.all_block_bytes()), "). ", sizes_text(plan, scheduler.block_size, memory),
              ". Three ways out: decrease `max_model_len` to ", num_blocks * scheduler.block_size,
              " or less; increase `gpu_memory_utilization` (now ", options.gpu_memory_utilization,
              ") or `kv_cache_memory_bytes` (VLLM_CPU_KVCACHE_SPACE in GiB on a CPU, num_gpu_blocks_override if that "
              "is set); or free memory that other processes hold."));
}

// On the host pages come when they are touched, so only what could never be there is refused.
void check_fits(const MemoryPlan& plan, const SchedulerOptions& scheduler, const EngineOptions& options,
                const Device& device, const DeviceMemory& memory) {
  const int64_t needed = plan.fixed_bytes() + plan.kv_bytes();
  const int64_t limit = device.is_asynchronous() ? memory.available_bytes : memory.total_bytes;
  if (needed <= limit) return;
  throw InvalidArgument(str_cat(
      "not enough memory on the device \"", device.name(), "\": ", gib(needed), " are needed (KV cache of ",
      plan.num_blocks, " blocks: ", gib(plan.kv_bytes()), "). ", sizes_text(plan, scheduler.block_size, memory),
      ". Three ways out: lower `gpu_memory_utilization` (now ", options.gpu_memory_utilization,
      ") so that its share of the whole device is free, or `kv_cache_memory_bytes` and `num_gpu_blocks_override` if "
      "they are set; use a smaller model, `cpu_offload_gb` or `dtype=\"bfloat16\"`; or free memory that other "
      "processes hold."));
}

// The arena takes the larger of the two models' scratch: they run one after the other.
void plan_draft(const SpeculationConfig& speculation, const SchedulerOptions& scheduler, const EngineOptions& options,
                const Device& device, MemoryPlan& plan) {
  const ModelConfig& draft = speculation.draft;
  Weights weights;
  plan.draft.weight_bytes =
      static_cast<int64_t>(place_weights(draft.arch, draft.weight_format(), device.kernels(), nullptr, weights));
  plan.draft.kv_block_bytes = kv_block_bytes(draft.arch, draft.dtype, options.block_size);
  plan.draft.workspace_bytes = static_cast<int64_t>(
      DraftModel::workspace_bytes(draft, speculation.num_tokens, scheduler, device.kernels(), options.batch_invariant));
  const size_t arena =
      measure_arena(draft, DraftModel::step_options(scheduler), device.kernels(), device.num_threads());
  plan.arena_bytes = std::max(plan.arena_bytes, static_cast<int64_t>(arena));
}

}  // namespace

MemoryPlan plan_memory(const ModelConfig& model, const SchedulerOptions& scheduler, const EngineOptions& options,
                       const Device& device, const SpeculationConfig& speculation, int32_t num_sharing) {
  const KernelTable& kernels = device.kernels();
  Weights weights;
  RopePlacement rope;
  BatchBuffers buffers;
  CopyBuffers copy_buffers;
  RowBuffers row_buffers;
  MemoryPlan plan;
  plan.offload = offload_plan(model, options, device);
  plan.weight_bytes =
      static_cast<int64_t>(place_weights(model.arch, model.weight_format(), kernels, nullptr, weights, plan.offload));
  plan.arena_bytes = static_cast<int64_t>(measure_arena(model, scheduler, kernels, device.num_threads()));
  size_t workspace_bytes = place_rope_tables(model, nullptr, rope) + place_batch_buffers(scheduler, nullptr, buffers) +
                           place_copy_buffers(std::ssize(model.arch.layers) + std::ssize(speculation.draft.arch.layers),
                                              scheduler, nullptr, copy_buffers) +
                           gemm_scratch_bytes(weights, kernels, options.batch_invariant);
  if (scheduler.device_rows) workspace_bytes += place_row_buffers(scheduler, nullptr, row_buffers);
  if (speculation.has_draft_model()) plan_draft(speculation, scheduler, options, device, plan);
  plan.workspace_bytes = plan.arena_bytes + static_cast<int64_t>(workspace_bytes);
  plan.kv_block_bytes = kv_block_bytes(model.arch, model.dtype, options.block_size);

  const DeviceMemory memory = memory_of_rank(device, num_sharing);
  int64_t num_blocks = options.num_gpu_blocks_override;
  if (num_blocks == 0) {
    const int64_t budget = kv_budget_bytes(plan, scheduler, options, device, memory, num_sharing);
    num_blocks = std::max<int64_t>(0, budget / plan.all_block_bytes());
  }
  if (num_blocks < max_blocks_per_seq(scheduler)) {
    refuse_short_cache(plan, num_blocks, model, scheduler, options, memory);
  }
  plan.num_blocks = num_blocks;
  check_fits(plan, scheduler, options, device, memory);
  // Slots are numbered in 32 bits; a cache that large would be of several hundred gigabytes.
  plan.num_blocks = std::min<int64_t>(num_blocks, INT32_MAX / scheduler.block_size);
  return plan;
}

}  // namespace quire
