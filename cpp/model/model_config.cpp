// Resolution of dtype, context length and end-of-sequence ids; see model_config.h. Load time, caller's thread.
#include "model/model_config.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/log.h"
#include "model/arch_common.h"
#include "model/arch_registry.h"

namespace quire {
namespace {

constexpr int64_t kDefaultMaxModelLen = 2048;  // vLLM's, for configurations that say nothing

DType resolve_dtype(const Json& config, const std::string& dtype) {
  if (dtype != "auto") return parse_dtype(dtype);
  std::string name = json_get<std::string>(config, "dtype", json_get<std::string>(config, "torch_dtype", "float32"));
  if (name.starts_with("torch.")) name = name.substr(6);
  try {
    return parse_dtype(name);
  } catch (const InvalidArgument&) {
    throw InvalidArgument(
        str_cat("config.json has the dtype \"", name,
                "\", which quire does not compute in; pass dtype=\"float32\", \"float16\" or \"bfloat16\""));
  }
}

bool long_context_allowed() {
  for (const char* name : {"VLLM_ALLOW_LONG_MAX_MODEL_LEN", "QUIRE_ALLOW_LONG_MAX_MODEL_LEN"}) {
    const char* value = std::getenv(name);
    if (value != nullptr && (std::string_view(value) == "1" || std::string_view(value) == "true")) return true;
  }
  return false;
}

int64_t resolve_max_model_len(const Json& config, const ArchSpec& arch, int64_t asked) {
  if (asked < 0) throw InvalidArgument(str_cat("max_model_len must be at least 1, got ", asked));
  const int64_t table_rows = arch.learned_positions.has_value() ? arch.learned_positions->max_positions : 0;
  if (table_rows > 0 && asked > table_rows) {
    throw InvalidArgument(str_cat("max_model_len (", asked, ") is greater than the ", table_rows, " positions ",
                                  arch.name, " has learned embeddings for; decrease max_model_len"));
  }
  if (arch.max_positions == 0) {
    if (asked == 0) {
      log_warning("config.json says nothing of the context length; max_model_len becomes ", kDefaultMaxModelLen);
    }
    return asked == 0 ? kDefaultMaxModelLen : asked;
  }
  if (asked == 0) return table_rows > 0 ? std::min(arch.max_positions, table_rows) : arch.max_positions;
  const int64_t model_max_length = config_size_or(config, {"model_max_length"}, 0);
  if (asked <= std::max(arch.max_positions, model_max_length)) return asked;
  const std::string message =
      str_cat("User-specified max_model_len (", asked, ") is greater than the derived max_model_len (",
              arch.max_positions_key, "=", arch.max_positions,
              " or model_max_length=", model_max_length > 0 ? std::to_string(model_max_length) : "None",
              " in model's config.json). This may lead to incorrect model outputs or CUDA errors.");
  if (!long_context_allowed()) {
    throw InvalidArgument(message +
                          " To allow overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1");
  }
  log_warning(message, " Make sure the value is correct and within the model context size.");
  return asked;
}

void append_eos_ids(const Json& config, int64_t vocab_size, std::vector<int32_t>& ids) {
  const auto found = config.find("eos_token_id");
  if (found == config.end() || found->is_null()) return;
  const Json list = found->is_array() ? *found : Json::array({*found});
  for (const Json& entry : list) {
    if (!entry.is_number_integer()) {
      throw InvalidArgument(
          str_cat("config key \"eos_token_id\" must be an integer or a list of them, got ", found->dump()));
    }
    const auto id = entry.get<int64_t>();
    // Ids that the model cannot emit are placeholders (-1) or leftovers of another tokenizer.
    if (id < 0 || id >= vocab_size) continue;
    if (std::ranges::find(ids, id) == ids.end()) ids.push_back(static_cast<int32_t>(id));
  }
}

}  // namespace

Json read_model_config(const std::filesystem::path& model_dir, const std::string& overrides) {
  require(std::filesystem::is_directory(model_dir), str_cat("no model directory at ", model_dir.string(),
                                                            ": expected a folder with config.json and safetensors"));
  Json config = read_json_file(model_dir / "config.json");
  require(config.is_object(), str_cat((model_dir / "config.json").string(), " is not a JSON object"));
  if (!overrides.empty()) config.update(Json::parse(overrides));
  return config;
}

ModelConfig resolve_model_config(const Json& config, const std::filesystem::path& model_dir, const std::string& dtype,
                                 int64_t max_model_len) {
  return resolve_model_config(config, arch_registry().build(config), model_dir, dtype, max_model_len);
}

ModelConfig resolve_model_config(const Json& config, ArchSpec arch, const std::filesystem::path& model_dir,
                                 const std::string& dtype, int64_t max_model_len) {
  ModelConfig model;
  model.config = config;
  model.arch = std::move(arch);
  model.dtype = resolve_dtype(config, dtype);
  model.max_model_len = resolve_max_model_len(config, model.arch, max_model_len);
  const std::filesystem::path generation_config = model_dir / "generation_config.json";
  if (std::filesystem::exists(generation_config)) {
    append_eos_ids(read_json_file(generation_config), model.arch.vocab_size, model.eos_token_ids);
  }
  append_eos_ids(config, model.arch.vocab_size, model.eos_token_ids);
  return model;
}

}  // namespace quire
