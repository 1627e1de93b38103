// Weights of API objects; see checkpoints.h. Load time, caller's thread.
#include "api/checkpoints.h"

#include <utility>

#include "base/check.h"

namespace quire {

std::unique_ptr<Checkpoint> open_checkpoint(const std::string& model_dir, const EngineOptions& options) {
  if (options.load_format == "dummy") return nullptr;
  if (options.load_format == "auto" || options.load_format == "safetensors") return open_safetensors(model_dir);
  throw NotSupported(str_cat("load_format=\"", options.load_format,
                             "\" is not supported; use \"auto\", \"safetensors\" or \"dummy\""));
}

std::unique_ptr<Checkpoint> adopt_tensors(const std::vector<ExternalTensor>& weights) {
  std::vector<CheckpointTensor> tensors;
  tensors.reserve(weights.size());
  for (const ExternalTensor& tensor : weights) {
    tensors.push_back({tensor.name, parse_dtype(tensor.dtype), tensor.shape, tensor.data});
  }
  return checkpoint_in_memory(std::move(tensors));
}

}  // namespace quire
