// Reading of modules.json; see sentence_transformers.h.
#include "model/sentence_transformers.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/json.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

// Its first releases named this file by the encoder.
constexpr const char* kLengthFiles[] = {"sentence_bert_config.json",       "sentence_roberta_config.json",
                                        "sentence_distilbert_config.json", "sentence_camembert_config.json",
                                        "sentence_albert_config.json",     "sentence_xlm-roberta_config.json",
                                        "sentence_xlnet_config.json"};

Json read_module_config(const fs::path& model_dir, const std::string& folder, const char* module) {
  const fs::path path = model_dir / folder / "config.json";
  if (!fs::exists(path)) {
    throw InvalidArgument(str_cat((model_dir / "modules.json").string(), " names a ", module, " module in \"", folder,
                                  "\", but there is no ", path.string(), "; is the download complete?"));
  }
  Json config = read_json_file(path);
  if (!config.is_object()) throw InvalidArgument(str_cat(path.string(), " is not a JSON object"));
  return config;
}

std::string known_modes() {
  std::string names;
  for (const PoolingMode mode : kPoolingModes) {
    names += (names.empty() ? "" : ", ") + std::string(pooling_mode_name(mode));
  }
  return names;
}

PoolingMode parse_mode(const Json& name, const std::string& where) {
  for (const PoolingMode mode : kPoolingModes) {
    if (name == pooling_mode_name(mode)) return mode;
  }
  throw InvalidArgument(
      str_cat("Invalid pooling mode: ", name.dump(), " in ", where, ". Valid pooling modes are: ", known_modes()));
}

// Older files have a flag for each mode, which are joined in the order of kPoolingModes.
std::vector<PoolingMode> flagged_modes(const Json& config, const std::string& where) {
  static const std::vector<std::string> flags = {
      "cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"};
  const std::string prefix = "pooling_mode_";
  for (const auto& [key, value] : config.items()) {
    if (key.starts_with(prefix) && std::ranges::find(flags, key.substr(prefix.size())) == flags.end()) {
      throw InvalidArgument(str_cat(where, " has \"", key, "\", which is no mode; there are ", known_modes()));
    }
  }
  std::vector<PoolingMode> modes;
  for (size_t i = 0; i < flags.size(); ++i) {
    if (json_get<bool>(config, (prefix + flags[i]).c_str(), false)) modes.push_back(kPoolingModes[i]);
  }
  if (modes.empty()) modes.push_back(PoolingMode::mean);
  return modes;
}

std::vector<PoolingMode> modes_in(const Json& config, const std::string& where) {
  const auto found = config.find("pooling_mode");
  if (found == config.end() || found->is_null()) return flagged_modes(config, where);
  if (!found->is_array()) return {parse_mode(*found, where)};
  require(!found->empty(), str_cat(where, " has an empty list of pooling modes"));
  std::vector<PoolingMode> modes;
  for (const Json& name : *found) modes.push_back(parse_mode(name, where));
  return modes;
}

// Devices pool by one mode alone, and not by every one.
PoolingType type_of(const std::vector<PoolingMode>& modes) {
  if (modes.size() > 1) return PoolingType::modes;
  switch (modes.front()) {
    case PoolingMode::cls:
      return PoolingType::cls;
    case PoolingMode::mean:
      return PoolingType::mean;
    case PoolingMode::lasttoken:
      return PoolingType::last;
    default:
      return PoolingType::modes;
  }
}

Activation dense_activation(const Json& config, const std::string& where) {
  const auto name = json_get<std::string>(config, "activation_function", "torch.nn.modules.activation.Tanh");
  static const std::vector<std::pair<std::string, Activation>> known = {{"Identity", Activation::none},
                                                                        {"Tanh", Activation::tanh},
                                                                        {"ReLU", Activation::relu},
                                                                        {"GELU", Activation::gelu},
                                                                        {"SiLU", Activation::silu}};
  for (const auto& [ending, activation] : known) {
    if (name.ends_with("." + ending)) return activation;
  }
  throw NotSupported(str_cat(where, " has the activation function ", name,
                             ", which is not supported; Identity, Tanh, ReLU, GELU and SiLU are"));
}

void read_module(const fs::path& model_dir, const Json& module, SentenceTransformersConfig& result) {
  if (!module.is_object())
    throw InvalidArgument(str_cat((model_dir / "modules.json").string(), " is no list of objects"));
  const auto type = json_get<std::string>(module, "type", "");
  const auto folder = json_get<std::string>(module, "path", "");
  const std::string name = type.substr(type.rfind('.') + 1);
  if (type.starts_with("pylate.")) result.is_late_interaction = true;
  const std::string where = (model_dir / folder / "config.json").string();
  if (name == "Transformer") {
    if (folder.empty() || fs::equivalent(model_dir / folder, model_dir)) return;
    throw NotSupported(str_cat((model_dir / "modules.json").string(), " has its transformer in the folder \"", folder,
                               "\"; copy the files of that folder beside modules.json and make its path empty"));
  }
  if (name == "Pooling") {
    result.modes = modes_in(read_module_config(model_dir, folder, "Pooling"), where);
    result.pooling = type_of(result.modes);
  } else if (name == "Normalize") {
    result.normalizes = true;
  } else if (name == "Dense") {
    const Json config = read_module_config(model_dir, folder, "Dense");
    if (json_get<bool>(config, "use_residual", false)) {
      throw NotSupported(str_cat(where, " has use_residual, which is not supported"));
    }
    result.dense.push_back({folder,
                            {.inputs = json_require<int64_t>(config, "in_features"),
                             .outputs = json_require<int64_t>(config, "out_features"),
                             .bias = json_get<bool>(config, "bias", true),
                             .activation = dense_activation(config, where)}});
  } else if (name != "Dropout") {  // which does nothing when a model runs
    throw NotSupported(str_cat((model_dir / "modules.json").string(), " has a module of type ", type,
                               ", which is not supported; Transformer, Pooling, Dense and Normalize are"));
  }
}

class JoinedCheckpoint final : public Checkpoint {
 public:
  void add(std::unique_ptr<Checkpoint> part, const std::string& prefix) {
    for (CheckpointTensor tensor : part->tensors()) {
      tensor.name = prefix + tensor.name;
      tensors_.push_back(std::move(tensor));
    }
    parts_.push_back(std::move(part));
  }
  const std::vector<CheckpointTensor>& tensors() const override { return tensors_; }
  // A part knows its own pages.
  void release(const CheckpointTensor& tensor) const override {
    for (const auto& part : parts_) part->release(tensor);
  }
  void release_all() const override {
    for (const auto& part : parts_) part->release_all();
  }
  std::string describe_files() const override {
    std::string all;
    for (const auto& part : parts_) {
      const std::string files = part->describe_files();
      if (files.empty()) return {};
      all += files;
    }
    return all;
  }
  std::string reread_problem() const override {
    for (const auto& part : parts_) {
      if (std::string problem = part->reread_problem(); !problem.empty()) return problem;
    }
    return {};
  }

 private:
  std::vector<std::unique_ptr<Checkpoint>> parts_;
  std::vector<CheckpointTensor> tensors_;
};

}  // namespace

SentenceTransformersConfig read_sentence_transformers(const fs::path& model_dir) {
  SentenceTransformersConfig result;
  for (const char* name : kLengthFiles) {
    if (!fs::exists(model_dir / name)) continue;
    const Json config = read_json_file(model_dir / name);
    if (config.is_object()) result.max_seq_length = json_get<int64_t>(config, "max_seq_length", 0);
    break;
  }
  const fs::path path = model_dir / "modules.json";
  if (!fs::exists(path)) return result;
  const Json modules = read_json_file(path);
  if (!modules.is_array()) throw InvalidArgument(str_cat(path.string(), " is no list of modules"));
  for (const Json& module : modules) read_module(model_dir, module, result);
  return result;
}

std::unique_ptr<Checkpoint> with_dense_weights(std::unique_ptr<Checkpoint> main, const fs::path& model_dir,
                                               const std::vector<std::string>& folders) {
  if (folders.empty() || main == nullptr) return main;
  auto joined = std::make_unique<JoinedCheckpoint>();
  joined->add(std::move(main), "");
  for (const std::string& folder : folders) joined->add(open_safetensors(model_dir / folder), folder + "/");
  return joined;
}

}  // namespace quire
