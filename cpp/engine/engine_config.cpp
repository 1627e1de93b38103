// Options to numbers; see engine_config.h.
#include "engine/engine_config.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "base/log.h"
#include "device/open_device.h"
#include "engine/row_state.h"
#include "engine/step_graphs.h"
#include "engine/step_memory.h"
#include "model/layer_offload.h"
#include "model/shard.h"

namespace quire {
namespace {

// Enough rows for the matrix products to run at full speed, few enough that decodes do not wait long behind a prompt.
constexpr int64_t kDefaultBatchedTokens = 2048;

void check_options(const EngineOptions& options, const Device& device) {
  require(options.max_num_seqs >= 1, str_cat("max_num_seqs must be at least 1, got ", options.max_num_seqs));
  require(options.max_num_batched_tokens >= 0,
          str_cat("max_num_batched_tokens must be positive, got ", options.max_num_batched_tokens));
  const int32_t multiple = device.kernels().block_size_multiple;
  require(options.block_size > 0 && options.block_size % multiple == 0,
          str_cat("block_size must be a multiple of ", multiple, " on the device \"", device.name(), "\", got ",
                  options.block_size));
  require(options.gpu_memory_utilization > 0.0 && options.gpu_memory_utilization <= 1.0,
          str_cat("GPU memory utilization must be less than 1.0. Got ", options.gpu_memory_utilization, "."));
  require(options.cpu_offload_gb >= 0.0,
          str_cat("CPU offload space must be non-negative, but got ", options.cpu_offload_gb));
  require(options.kv_cache_memory_bytes >= 0 && options.num_gpu_blocks_override >= 0,
          "kv_cache_memory_bytes and num_gpu_blocks_override must not be negative");
  require(options.max_seq_len_to_capture >= 1,
          str_cat("max_seq_len_to_capture must be at least 1, got ", options.max_seq_len_to_capture));
  require(std::ranges::all_of(options.graph_sizes, [](int32_t size) { return size >= 1; }),
          "graph_sizes (cudagraph_capture_sizes) must be batch sizes of at least 1");
  require(options.long_prefill_token_threshold >= 0,
          str_cat("long_prefill_token_threshold must not be negative, got ", options.long_prefill_token_threshold));
  require(options.enable_chunked_prefill || options.long_prefill_token_threshold == 0,
          str_cat("long_prefill_token_threshold=", options.long_prefill_token_threshold,
                  " spreads prompts over steps, which enable_chunked_prefill=false forbids; drop one of the two"));
}

LogprobsMode parse_logprobs_mode(const std::string& name) {
  if (name == "raw_logprobs") return LogprobsMode::raw_logprobs;
  if (name == "raw_logits") return LogprobsMode::raw_logits;
  if (name == "processed_logprobs") return LogprobsMode::processed_logprobs;
  if (name == "processed_logits") return LogprobsMode::processed_logits;
  throw InvalidArgument(str_cat("Invalid logprobs_mode \"", name, "\". Known values: raw_logprobs, raw_logits, ",
                                "processed_logprobs, processed_logits"));
}

SchedulerOptions scheduler_options(const ModelConfig& model, const EngineOptions& options) {
  SchedulerOptions scheduler;
  scheduler.block_size = options.block_size;
  scheduler.max_num_seqs = options.max_num_seqs;
  scheduler.max_model_len = model.max_model_len;
  scheduler.long_prefill_token_threshold = options.long_prefill_token_threshold;
  scheduler.enable_prefix_caching = options.enable_prefix_caching;
  scheduler.enable_chunked_prefill = options.enable_chunked_prefill;
  int64_t tokens = options.max_num_batched_tokens;
  if (tokens == 0) {
    tokens = std::max(kDefaultBatchedTokens, options.max_num_seqs);
    if (!options.enable_chunked_prefill) tokens = std::max(tokens, model.max_model_len);
  }
  require(options.enable_chunked_prefill || tokens >= model.max_model_len,
          str_cat("max_num_batched_tokens (", tokens, ") is smaller than max_model_len (", model.max_model_len,
                  "). This effectively limits the maximum sequence length to max_num_batched_tokens and makes quire "
                  "reject longer sequences. Please increase max_num_batched_tokens or decrease max_model_len."));
  require(tokens >= options.max_num_seqs,
          str_cat("max_num_batched_tokens (", tokens, ") must be greater than or equal to max_num_seqs (",
                  options.max_num_seqs, ")."));
  scheduler.max_num_batched_tokens = tokens;
  return scheduler;
}

// Whether NCCL can sum between the ranks' devices, and may.
void check_collective_library(const EngineOptions& options, const Device& device) {
  const int32_t num_ranks = options.tensor_parallel_size;
  if (!options.disable_custom_all_reduce || !device.is_asynchronous()) return;
  require(num_ranks_of_a_device(options.device, num_ranks) == 1,
          str_cat("disable_custom_all_reduce=true sums with NCCL, which has one rank a device, and device=\"",
                  options.device, "\" has several ranks on one; leave disable_custom_all_reduce false there"));
  // A sum of two has one order. Of more, NCCL's depends on where in the buffer a row lies, so on its batch mates.
  require(num_ranks <= 2 || !options.batch_invariant,
          str_cat("disable_custom_all_reduce=true with tensor_parallel_size=", num_ranks,
                  " sums with NCCL in an order that depends on the batch, which batch_invariant=true (the default) "
                  "forbids; set batch_invariant to false too, or leave disable_custom_all_reduce false"));
  const Device::Library library = device.collective_library();
  if (!library.is_found) {
    throw NotSupported(str_cat("disable_custom_all_reduce=true sums with NCCL, which was not found: ", library.status,
                               ". Or leave disable_custom_all_reduce false: quire sums by itself then."));
  }
}

// The first rank alone guesses, with all of a draft model: the others get the drafts with the batch.
SpeculationConfig speculation_of_rank(const SpeculationConfig& speculation, int32_t rank) {
  return rank == 0 ? speculation : SpeculationConfig{};
}

// All ranks have as many blocks as the one with the least room.
void plan_ranks(const Device& device, EngineConfig& config) {
  const int32_t num_ranks = config.options.tensor_parallel_size;
  if (num_ranks == 1) {
    config.memory = plan_memory(config.model, config.scheduler, config.options, device, config.speculation);
    return;
  }
  const int32_t num_sharing = num_ranks_of_a_device(config.options.device, num_ranks);
  for (int32_t rank = 0; rank < num_ranks; ++rank) {
    ModelConfig part = config.model;
    part.arch = shard_arch(config.model.arch, rank, num_ranks);
    config.memory_of_ranks.push_back(plan_memory(part, config.scheduler, config.options, device,
                                                 speculation_of_rank(config.speculation, rank), num_sharing));
  }
  const auto blocks = [](const MemoryPlan& plan) { return plan.num_blocks; };
  const int64_t fewest = std::ranges::min(config.memory_of_ranks, {}, blocks).num_blocks;
  for (MemoryPlan& plan : config.memory_of_ranks) plan.num_blocks = fewest;
  config.memory = config.memory_of_ranks.front();
}

}  // namespace

void check_ranks(const EngineOptions& options, const Device& device) {
  const int32_t num_ranks = options.tensor_parallel_size;
  require(num_ranks >= 1 && num_ranks <= kMaxRanks,
          str_cat("tensor_parallel_size must be from 1 to ", kMaxRanks, ", got ", num_ranks));
  require(options.collective_timeout > 0.0,
          str_cat("collective_timeout must be positive, got ", options.collective_timeout));
  if (num_ranks == 1) return;
  if (options.cpu_offload_gb > 0.0 && device.is_asynchronous()) {
    throw NotSupported(
        str_cat("tensor_parallel_size=", num_ranks, " together with cpu_offload_gb is not supported by this version."));
  }
  check_collective_library(options, device);
}

EngineConfig resolve_engine_config(const std::filesystem::path& model_dir, const EngineOptions& options,
                                   const Device& device) {
  check_options(options, device);
  check_ranks(options, device);
  EngineConfig config;
  config.options = options;
  config.logprobs_mode = parse_logprobs_mode(options.logprobs_mode);
  require(options.scheduling_policy == "fcfs" || options.scheduling_policy == "priority",
          str_cat("Invalid scheduling_policy \"", options.scheduling_policy, "\". Known values: fcfs, priority"));
  config.by_priority = options.scheduling_policy == "priority";
  const Json json = read_model_config(model_dir, options.config_overrides);
  const bool int8_weights = wants_int8_weights(options, json, device);
  config.model = resolve_model_config(json, model_dir, options.dtype, options.max_model_len);
  config.model.int8_weights = int8_weights;
  if (!options.eos_token_ids.empty()) config.model.eos_token_ids = options.eos_token_ids;
  config.scheduler = scheduler_options(config.model, options);
  config.scheduler.device_rows = device.is_asynchronous();
  config.speculation = resolve_speculation(options, config.model);
  apply_speculation(config.speculation, config.model, config.scheduler);
  // Streams of several ranks wait for each other's events, which no graph of one of them holds.
  if (device.is_asynchronous() && !options.enforce_eager && options.tensor_parallel_size == 1) {
    config.graph_sizes = options.graph_sizes.empty() ? StepGraphs::default_sizes() : options.graph_sizes;
  }
  config.graph_max_kv_len = std::min(config.model.max_model_len, options.max_seq_len_to_capture);

  plan_ranks(device, config);
  config.scheduler.num_blocks = static_cast<int32_t>(config.memory.num_blocks);
  return config;
}

EngineConfig config_of_rank(const EngineConfig& config, int32_t rank) {
  EngineConfig part = config;
  part.model.arch = shard_arch(config.model.arch, rank, config.options.tensor_parallel_size);
  part.speculation = speculation_of_rank(config.speculation, rank);
  part.memory = config.memory_of_ranks.at(static_cast<size_t>(rank));
  part.memory_of_ranks.clear();
  return part;
}

std::vector<std::unique_ptr<Device>> make_devices(const EngineOptions& options) {
  return open_devices(options.device, std::clamp(options.tensor_parallel_size, 1, kMaxRanks),
                      {.num_threads = options.num_threads, .isa = options.cpu_isa});
}

std::unique_ptr<Device> make_device(const EngineOptions& options) { return std::move(make_devices(options).front()); }

bool wants_int8_weights(const EngineOptions& options, const Json& config, const Device& device) {
  const std::string& method = options.quantization;
  if (method.empty()) return false;
  require(method == "int8", str_cat("Unknown quantization method: ", method, ". Must be one of [int8]."));
  const auto found = config.find("quantization_config");
  if (found != config.end() && found->is_object()) {
    const auto stored = json_get<std::string>(*found, "quant_method", "unknown");
    throw InvalidArgument(str_cat("Quantization method specified in the model config (", stored,
                                  ") does not match the quantization method specified in the `quantization` argument (",
                                  method, ")."));
  }
  if (device.kernels().int8_rows_bytes == nullptr) {
    throw NotSupported(str_cat("quantization=\"int8\" is not supported on the device \"", device.name(),
                               "\"; it is for device=\"cpu\". Leave quantization out."));
  }
  return true;
}

ModelInfo describe_model(const ModelConfig& model, const Device& device) {
  const ArchSpec& arch = model.arch;
  ModelInfo description;
  description.architecture = arch.name;
  description.dtype = std::string(dtype_name(model.dtype));
  description.quantization = model.int8_weights ? "int8" : "";
  description.device = device.name();
  description.kernels = device.kernels().name;
  description.max_model_len = model.max_model_len;
  description.vocab_size = arch.vocab_size;
  description.num_layers = static_cast<int64_t>(arch.layers.size());
  description.hidden_size = arch.hidden;
  description.num_parameters = num_parameters(arch);
  description.num_threads = device.num_threads();
  description.eos_token_ids = model.eos_token_ids;
  return description;
}

ModelInfo describe(const EngineConfig& config, const Device& device) {
  ModelInfo description = describe_model(config.model, device);
  const std::vector<MemoryPlan> plans =
      config.memory_of_ranks.empty() ? std::vector<MemoryPlan>{config.memory} : config.memory_of_ranks;
  for (const MemoryPlan& plan : plans) {
    const ModelInfo::OfRank rank = {.weight_bytes = plan.weight_bytes + plan.draft.weight_bytes,
                                    .workspace_bytes = plan.workspace_bytes + plan.draft.workspace_bytes,
                                    .kv_cache_bytes = plan.kv_bytes()};
    description.weight_bytes += rank.weight_bytes;
    description.workspace_bytes += rank.workspace_bytes;
    description.kv_cache_bytes += rank.kv_cache_bytes;
    description.offloaded_weight_bytes += static_cast<int64_t>(plan.offload.host_bytes());
    description.kv_bytes_per_token += plan.all_block_bytes() / config.scheduler.block_size;
    if (plans.size() > 1) description.ranks.push_back(rank);
  }
  description.tensor_parallel_size = config.options.tensor_parallel_size;
  description.num_blocks = config.memory.num_blocks;
  description.block_size = config.scheduler.block_size;
  description.max_num_seqs = config.scheduler.max_num_seqs;
  description.max_num_batched_tokens = config.scheduler.max_num_batched_tokens;
  return description;
}

}  // namespace quire
