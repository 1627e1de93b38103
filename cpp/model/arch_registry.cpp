// The list of known architectures; see arch_registry.h.
#include "model/arch_registry.h"

#include "base/check.h"
#include "model/arch_common.h"

namespace quire {

// Written by CMake from the files of arch/.
void register_all_archs(ArchRegistry& registry);

void ArchRegistry::add(const std::string& architecture, ArchBuilder builder) {
  const bool inserted = builders_.emplace(architecture, std::move(builder)).second;
  QUIRE_CHECK(inserted, "architecture ", architecture, " is registered twice");
}

ArchSpec ArchRegistry::build(const Json& config) const {
  if (!config.is_object()) throw InvalidArgument("config.json must hold a JSON object");
  const auto names = json_get<std::vector<std::string>>(config, "architectures", {});
  for (const std::string& name : names) {
    const auto found = builders_.find(name);
    if (found == builders_.end()) continue;
    ArchSpec arch = found->second(config);
    arch.name = name;
    apply_context_length(config, arch);
    return arch;
  }
  const auto quoted_list = [](const std::vector<std::string>& items) {
    std::string text = "[";
    for (const std::string& item : items) text += str_cat(text.size() > 1 ? ", " : "", "'", item, "'");
    return text + "]";
  };
  throw InvalidArgument(str_cat("Model architectures ", quoted_list(names),
                                " are not supported for now. Supported architectures: ", quoted_list(supported())));
}

std::vector<std::string> ArchRegistry::supported() const {
  std::vector<std::string> names;
  for (const auto& [name, builder] : builders_) names.push_back(name);
  return names;
}

const ArchRegistry& arch_registry() {
  static const ArchRegistry registry = [] {
    ArchRegistry all;
    register_all_archs(all);
    return all;
  }();
  return registry;
}

}  // namespace quire
