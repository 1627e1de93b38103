// Ranges and messages; see speculation_config.h.
#include "engine/speculation_config.h"

#include <algorithm>
#include <filesystem>

#include "base/check.h"

namespace quire {
namespace {

constexpr int32_t kMaxDrafts = 1024;
constexpr int32_t kDefaultLookup = 5;                     // vLLM's
constexpr int64_t kMaxLogits = (int64_t{256} << 20) / 4;  // float32

void resolve_lookup(const EngineOptions& options, SpeculationConfig& config) {
  config.lookup_min = options.prompt_lookup_min;
  config.lookup_max = options.prompt_lookup_max;
  if (config.lookup_max == 0) config.lookup_max = config.lookup_min != 0 ? config.lookup_min : kDefaultLookup;
  if (config.lookup_min == 0) config.lookup_min = config.lookup_max;
  require(config.lookup_min > 0, str_cat("prompt_lookup_min=", config.lookup_min, " must be > 0"));
  require(config.lookup_max > 0, str_cat("prompt_lookup_max=", config.lookup_max, " must be > 0"));
  require(config.lookup_min <= config.lookup_max,
          str_cat("prompt_lookup_min=", config.lookup_min, " must be <= prompt_lookup_max=", config.lookup_max));
}

void resolve_draft(const EngineOptions& options, const ModelConfig& model, SpeculationConfig& config) {
  const std::filesystem::path folder = options.draft_model;
  require(!options.draft_model.empty(), "speculative_method=\"draft_model\" needs draft_model, a model's directory");
  require(std::filesystem::is_directory(folder),
          str_cat("no draft model at ", folder.string(), ": expected a folder with config.json and safetensors"));
  require(options.draft_max_model_len >= 0,
          str_cat("draft_max_model_len must not be negative, got ", options.draft_max_model_len));
  const Json json = read_json_file(folder / "config.json");
  const std::string dtype(dtype_name(model.dtype));
  config.draft = resolve_model_config(json, folder, dtype, options.draft_max_model_len);
  config.draft.max_model_len = std::min(config.draft.max_model_len, model.max_model_len);
  config.max_model_len = config.draft.max_model_len;
  require(config.draft.arch.vocab_size == model.arch.vocab_size,
          str_cat("the draft model ", folder.string(), " has a vocabulary of ", config.draft.arch.vocab_size,
                  " tokens and the model one of ", model.arch.vocab_size,
                  ". Both must have the same tokens; choose a draft model of the same family."));
}

}  // namespace

SpeculationConfig resolve_speculation(const EngineOptions& options, const ModelConfig& model) {
  SpeculationConfig config;
  const std::string& method = options.speculative_method;
  if (method.empty()) {
    require(options.num_speculative_tokens == 0 && options.draft_model.empty() && options.prompt_lookup_max == 0 &&
                options.prompt_lookup_min == 0 && options.draft_max_model_len == 0 &&
                options.speculative_disable_by_batch_size == 0,
            "options of speculative decoding are given, but no speculative_method (ngram or draft_model)");
    return config;
  }
  require(method == "ngram" || method == "draft_model",
          str_cat("Invalid speculative_method \"", method, "\". Known values: ngram, draft_model"));
  require(options.num_speculative_tokens >= 1 && options.num_speculative_tokens <= kMaxDrafts,
          str_cat("num_speculative_tokens must be in [1, ", kMaxDrafts, "], got ", options.num_speculative_tokens));
  require(options.speculative_disable_by_batch_size >= 0,
          str_cat("speculative_disable_by_batch_size must not be negative, got ",
                  options.speculative_disable_by_batch_size));
  config.num_tokens = options.num_speculative_tokens;
  config.max_num_seqs = options.speculative_disable_by_batch_size;
  config.max_model_len = model.max_model_len;
  if (method == "ngram") {
    require(options.draft_model.empty() && options.draft_max_model_len == 0,
            "draft_model and draft_max_model_len are of speculative_method=\"draft_model\", not of \"ngram\"");
    config.method = SpeculationConfig::Method::ngram;
    resolve_lookup(options, config);
  } else {
    require(options.prompt_lookup_max == 0 && options.prompt_lookup_min == 0,
            "prompt_lookup_max and prompt_lookup_min are of speculative_method=\"ngram\", not of \"draft_model\"");
    config.method = SpeculationConfig::Method::draft_model;
    resolve_draft(options, model, config);
  }
  return config;
}

void apply_speculation(const SpeculationConfig& speculation, const ModelConfig& model, SchedulerOptions& scheduler) {
  if (!speculation.enabled()) return;
  scheduler.device_rows = false;
  scheduler.num_speculative_tokens = speculation.num_tokens;
  scheduler.has_draft_model = speculation.has_draft_model();
  const int64_t all = std::min(scheduler.max_num_seqs * (1 + speculation.num_tokens), scheduler.max_num_batched_tokens);
  scheduler.max_num_samples = std::min(all, std::max(scheduler.max_num_seqs, kMaxLogits / model.arch.vocab_size));
}

}  // namespace quire
