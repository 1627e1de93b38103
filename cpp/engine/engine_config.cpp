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

namespace quire {
namespace {

// Enough rows for the matrix products to run at full speed, few enough that decodes do not wait long behind a prompt.
constexpr int64_t kDefaultBatchedTokens = 2048;
constexpr int64_t kDefaultKvCacheBytes = int64_t{4} << 30;  // vLLM's default on CPUs

void require(bool condition, const std::string& message) {
  if (!condition) throw InvalidArgument(message);
}

std::string gib(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f GiB", static_cast<double>(bytes) / (int64_t{1} << 30));
  return text;
}

Json load_config(const std::filesystem::path& model_dir, const EngineOptions& options) {
  require(std::filesystem::is_directory(model_dir), str_cat("no model directory at ", model_dir.string(),
                                                            ": expected a folder with config.json and safetensors"));
  Json config = read_json_file(model_dir / "config.json");
  require(config.is_object(), str_cat((model_dir / "config.json").string(), " is not a JSON object"));
  if (!options.config_overrides.empty()) config.update(Json::parse(options.config_overrides));
  return config;
}

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

// What the cache may take: the caller's exact number, else what max_num_seqs sequences can use, capped by
// VLLM_CPU_KVCACHE_SPACE (GiB, default 4) and by the memory that is there.
int64_t kv_budget_bytes(const EngineConfig& config, const DeviceMemory& memory) {
  const EngineOptions& options = config.options;
  if (options.kv_cache_memory_bytes > 0) return options.kv_cache_memory_bytes;
  int64_t cap = kDefaultKvCacheBytes;
  if (const char* space = std::getenv("VLLM_CPU_KVCACHE_SPACE")) {
    const double requested = std::atof(space);
    if (requested > 0) cap = static_cast<int64_t>(requested * static_cast<double>(int64_t{1} << 30));
  }
  const int64_t wanted = config.max_blocks_per_seq() * options.max_num_seqs * config.memory.kv_block_bytes;
  const auto usable =
      static_cast<int64_t>(static_cast<double>(memory.available_bytes) * options.gpu_memory_utilization) -
      config.memory.weight_bytes - config.memory.workspace_bytes;
  return std::min({wanted, cap, usable});
}

void plan_kv_cache(EngineConfig& config, const DeviceMemory& memory) {
  const int64_t needed = config.max_blocks_per_seq();
  int64_t num_blocks = config.options.num_gpu_blocks_override;
  if (num_blocks == 0)
    num_blocks = std::max<int64_t>(0, kv_budget_bytes(config, memory) / config.memory.kv_block_bytes);
  const int64_t block_bytes = config.memory.kv_block_bytes;
  const int64_t block_size = config.scheduler.block_size;
  if (num_blocks < needed) {
    throw InvalidArgument(
        str_cat("To serve at least one request with the models's max seq len (", config.model.max_model_len, "), (",
                gib(needed * block_bytes), " KV cache is needed, which is larger than the available KV cache memory (",
                gib(num_blocks * block_bytes), "). Weights take ", gib(config.memory.weight_bytes), ", workspace ",
                gib(config.memory.workspace_bytes), ", KV cache ", block_bytes / block_size,
                " bytes a token; available memory ", gib(memory.available_bytes), " of ", gib(memory.total_bytes),
                ". Three ways out: decrease `max_model_len` to ", num_blocks * block_size,
                " or less; increase `gpu_memory_utilization` (now ", config.options.gpu_memory_utilization,
                ") or `kv_cache_memory_bytes` (VLLM_CPU_KVCACHE_SPACE in GiB on a CPU, ",
                "num_gpu_blocks_override if that is set); or free memory that other processes hold."));
  }
  config.memory.num_blocks = std::min<int64_t>(num_blocks, INT32_MAX / block_size);
}

// Nothing where weights are in host memory anyway.
OffloadPlan offload_plan(const ModelConfig& model, const EngineOptions& options, const Device& device) {
  if (!device.is_asynchronous()) return {};
  constexpr double kMostGb = 1e6;  // more than any layers have
  const double num_bytes = std::min(options.cpu_offload_gb, kMostGb) * static_cast<double>(int64_t{1} << 30);
  OffloadPlan plan = plan_offload(model.arch, model.dtype, device.kernels(), static_cast<int64_t>(num_bytes));
  if (!plan.empty() && plan.total_slot_bytes() >= plan.host_bytes()) {
    log_warning("cpu_offload_gb=", options.cpu_offload_gb, " keeps ", plan.layers.size(),
                " of the layers in host memory and needs ", plan.num_slots,
                " layer slots on the device for them: it saves no device memory and costs time. Ask for more than ",
                gib(static_cast<int64_t>(plan.total_slot_bytes())), ".");
  }
  return plan;
}

}  // namespace

int64_t EngineConfig::max_blocks_per_seq() const {
  return (scheduler.max_model_len + scheduler.block_size - 1) / scheduler.block_size;
}

EngineConfig resolve_engine_config(const std::filesystem::path& model_dir, const EngineOptions& options,
                                   const Device& device) {
  check_options(options, device);
  EngineConfig config;
  config.options = options;
  config.model = resolve_model_config(load_config(model_dir, options), model_dir, options.dtype, options.max_model_len);
  if (!options.eos_token_ids.empty()) config.model.eos_token_ids = options.eos_token_ids;
  config.scheduler = scheduler_options(config.model, options);
  config.scheduler.device_rows = device.is_asynchronous();
  if (device.is_asynchronous() && !options.enforce_eager) {
    config.graph_sizes = options.graph_sizes.empty() ? StepGraphs::default_sizes() : options.graph_sizes;
  }
  config.graph_max_kv_len = std::min(config.model.max_model_len, options.max_seq_len_to_capture);

  const ModelConfig& model = config.model;
  Weights weights;
  RopePlacement rope;
  BatchBuffers buffers;
  RowBuffers row_buffers;
  MemoryPlan& memory = config.memory;
  memory.offload = offload_plan(model, options, device);
  memory.weight_bytes =
      static_cast<int64_t>(place_weights(model.arch, model.dtype, device.kernels(), nullptr, weights, memory.offload));
  memory.arena_bytes =
      static_cast<int64_t>(measure_arena(model, config.scheduler, device.kernels(), device.num_threads()));
  memory.workspace_bytes =
      memory.arena_bytes + static_cast<int64_t>(place_rope_tables(model, nullptr, rope) +
                                                place_batch_buffers(config.scheduler, nullptr, buffers) +
                                                gemm_scratch_bytes(weights, device.kernels()));
  if (config.scheduler.device_rows) {
    memory.workspace_bytes += static_cast<int64_t>(place_row_buffers(config.scheduler, nullptr, row_buffers));
  }
  memory.kv_block_bytes = kv_block_bytes(model.arch, model.dtype, options.block_size);
  plan_kv_cache(config, device.memory());
  config.scheduler.num_blocks = static_cast<int32_t>(memory.num_blocks);
  return config;
}

std::unique_ptr<Device> make_device(const EngineOptions& options) {
  return open_device(options.device, {.num_threads = options.num_threads, .isa = options.cpu_isa});
}

ModelInfo describe(const EngineConfig& config, const Device& device) {
  const ArchSpec& arch = config.model.arch;
  ModelInfo description;
  description.architecture = arch.name;
  description.dtype = std::string(dtype_name(config.model.dtype));
  description.device = device.name();
  description.kernels = device.kernels().name;
  description.max_model_len = config.model.max_model_len;
  description.vocab_size = arch.vocab_size;
  description.num_layers = static_cast<int64_t>(arch.layers.size());
  description.hidden_size = arch.hidden;
  description.num_parameters = num_parameters(arch);
  description.weight_bytes = config.memory.weight_bytes;
  description.offloaded_weight_bytes = static_cast<int64_t>(config.memory.offload.host_bytes());
  description.workspace_bytes = config.memory.workspace_bytes;
  description.kv_cache_bytes = config.memory.kv_bytes();
  description.kv_bytes_per_token = config.memory.kv_block_bytes / config.scheduler.block_size;
  description.num_blocks = config.memory.num_blocks;
  description.block_size = config.scheduler.block_size;
  description.max_num_seqs = config.scheduler.max_num_seqs;
  description.max_num_batched_tokens = config.scheduler.max_num_batched_tokens;
  description.num_threads = device.num_threads();
  description.eos_token_ids = config.model.eos_token_ids;
  return description;
}

}  // namespace quire
