// What config.json says beyond the architecture: context length, dtype, end-of-sequence ids.
#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "base/dtype.h"
#include "base/json.h"
#include "model/arch.h"
#include "model/weights.h"

namespace quire {

struct ModelConfig {
  ArchSpec arch;
  DType dtype = DType::f32;            // resolved: "auto" takes the checkpoint's
  bool int8_weights = false;           // EngineOptions::quantization
  int64_t max_model_len = 0;           // resolved: the user's value, else the model's
  std::vector<int32_t> eos_token_ids;  // config.json and generation_config.json, primary first
  Json config;

  WeightFormat weight_format() const { return {dtype, int8_weights}; }
};

// config.json of a model's folder, `overrides` (a JSON object, or nothing) merged over it. Throws InvalidArgument: no
// such folder, not a JSON object.
Json read_model_config(const std::filesystem::path& model_dir, const std::string& overrides);

// `dtype` is "auto" or a name; max_model_len 0 means the model's own. `config` comes from config.json (with overrides
// merged). Throws InvalidArgument with the messages of vLLM: unknown architecture, unknown dtype, max_model_len over
// the model's (unless VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 or QUIRE_ALLOW_LONG_MAX_MODEL_LEN=1).
ModelConfig resolve_model_config(const Json& config, const std::filesystem::path& model_dir, const std::string& dtype,
                                 int64_t max_model_len);
// The same for an architecture that was made of `config` already.
ModelConfig resolve_model_config(const Json& config, ArchSpec arch, const std::filesystem::path& model_dir,
                                 const std::string& dtype, int64_t max_model_len);

}  // namespace quire
