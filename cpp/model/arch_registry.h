// The list of architectures quire knows, filled by one register_<name>() a file of arch/ (the list is made by CMake).
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "model/arch.h"

namespace quire {

using ArchBuilder = std::function<ArchSpec(const Json& config)>;

class ArchRegistry {
 public:
  // A name twice is a bug and fails a check.
  void add(const std::string& architecture, ArchBuilder builder);
  // The same for what has no text generation: encoders, and decoders with a head of their own.
  void add_pooling(const std::string& architecture, ArchBuilder builder);
  // The first of `architectures` that is known. Throws InvalidArgument
  // "Model architectures ['X'] are not supported for now. Supported architectures: [...]".
  ArchSpec build(const Json& config) const;
  // The same for a pooling model: of a decoder XForCausalLM also under the names XModel, XForSequenceClassification,
  // XForRewardModel and XForProcessRewardModel. Without the head for text (pooling_arch.h).
  ArchSpec build_pooling(const Json& config) const;
  std::vector<std::string> supported() const;
  // What add_pooling added; all of supported() can be pooled too.
  std::vector<std::string> supported_pooling() const;

 private:
  std::map<std::string, ArchBuilder> builders_, pooling_builders_;
};

// All families; built on first use.
const ArchRegistry& arch_registry();

}  // namespace quire
