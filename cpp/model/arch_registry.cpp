// The list of known architectures; see arch_registry.h.
#include "model/arch_registry.h"

#include <algorithm>
#include <string_view>

#include "base/check.h"
#include "model/arch_common.h"
#include "model/pooling_arch.h"

namespace quire {

// Written by CMake from the files of arch/.
void register_all_archs(ArchRegistry& registry);

namespace {

std::vector<std::string> architectures_of(const Json& config) {
  if (!config.is_object()) throw InvalidArgument("config.json must hold a JSON object");
  return json_get<std::vector<std::string>>(config, "architectures", {});
}

ArchSpec built(const ArchBuilder& builder, const std::string& name, const Json& config) {
  ArchSpec arch = builder(config);
  arch.name = name;
  apply_context_length(config, arch);
  return arch;
}

[[noreturn]] void throw_unknown(const std::vector<std::string>& names, const std::vector<std::string>& supported) {
  const auto quoted_list = [](const std::vector<std::string>& items) {
    std::string text = "[";
    for (const std::string& item : items) text += str_cat(text.size() > 1 ? ", " : "", "'", item, "'");
    return text + "]";
  };
  throw InvalidArgument(str_cat("Model architectures ", quoted_list(names),
                                " are not supported for now. Supported architectures: ", quoted_list(supported)));
}

std::vector<std::string> names_of(const std::map<std::string, ArchBuilder>& builders) {
  std::vector<std::string> names;
  for (const auto& [name, builder] : builders) names.push_back(name);
  return names;
}

// The decoders whose hidden states `name` may be a head for; its own name first.
std::vector<std::string> decoder_names(const std::string& name) {
  std::vector<std::string> names = {name};
  for (const std::string_view suffix :
       {"ForSequenceClassification", "ForProcessRewardModel", "ForRewardModel", "ForTokenClassification", "Model"}) {
    if (!name.ends_with(suffix)) continue;
    const std::string base = name.substr(0, name.size() - suffix.size());
    for (const char* head : {"ForCausalLM", "LMHeadModel"}) names.push_back(base + head);
    break;
  }
  return names;
}

}  // namespace

void ArchRegistry::add(const std::string& architecture, ArchBuilder builder) {
  const bool inserted = builders_.emplace(architecture, std::move(builder)).second;
  QUIRE_CHECK(inserted, "architecture ", architecture, " is registered twice");
}

void ArchRegistry::add_pooling(const std::string& architecture, ArchBuilder builder) {
  const bool inserted = pooling_builders_.emplace(architecture, std::move(builder)).second;
  QUIRE_CHECK(inserted, "architecture ", architecture, " is registered twice");
}

ArchSpec ArchRegistry::build(const Json& config) const {
  const std::vector<std::string> names = architectures_of(config);
  for (const std::string& name : names) {
    const auto found = builders_.find(name);
    if (found != builders_.end()) return built(found->second, name, config);
  }
  for (const std::string& name : names) {
    if (!pooling_builders_.contains(name)) continue;
    throw InvalidArgument(str_cat(name, " generates no text: it is a pooling model (runner=\"pooling\")"));
  }
  throw_unknown(names, supported());
}

ArchSpec ArchRegistry::build_pooling(const Json& config) const {
  const std::vector<std::string> names = architectures_of(config);
  for (const std::string& name : names) {
    if (const auto found = pooling_builders_.find(name); found != pooling_builders_.end()) {
      return built(found->second, name, config);
    }
    for (const std::string& decoder : decoder_names(name)) {
      const auto found = builders_.find(decoder);
      if (found == builders_.end()) continue;
      ArchSpec arch = built(found->second, name, config);
      make_pooling(config, arch);
      return arch;
    }
  }
  std::vector<std::string> all = supported_pooling();
  for (const std::string& name : supported()) all.push_back(name);
  std::ranges::sort(all);
  throw_unknown(names, all);
}

std::vector<std::string> ArchRegistry::supported() const { return names_of(builders_); }

std::vector<std::string> ArchRegistry::supported_pooling() const { return names_of(pooling_builders_); }

const ArchRegistry& arch_registry() {
  static const ArchRegistry registry = [] {
    ArchRegistry all;
    register_all_archs(all);
    return all;
  }();
  return registry;
}

}  // namespace quire
