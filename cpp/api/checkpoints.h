// How an API object gets its weights: from files, or from tensors in the caller's memory.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/weight_loader.h"
#include "quire/types.h"

namespace quire {

// Null for load_format "dummy". Throws NotSupported for a format that is not there.
std::unique_ptr<Checkpoint> open_checkpoint(const std::string& model_dir, const EngineOptions& options);
std::unique_ptr<Checkpoint> adopt_tensors(const std::vector<ExternalTensor>& weights);

}  // namespace quire
