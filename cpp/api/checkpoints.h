// How an API object gets its weights: from files, or from tensors in the caller's memory.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/weight_loader.h"
#include "model/weight_reader.h"
#include "quire/types.h"

namespace quire {

// Null for load_format "dummy". Throws NotSupported for a format that is not there.
std::unique_ptr<Checkpoint> open_checkpoint(const std::string& model_dir, const EngineOptions& options);
// Throws InvalidArgument when it knows no such dtype.
CheckpointTensor adopt_tensor(const ExternalTensor& tensor);
std::vector<CheckpointTensor> adopt_all(const std::vector<ExternalTensor>& tensors);
// Those of each rank.
std::vector<std::vector<CheckpointTensor>> adopt_parts(const std::vector<std::vector<ExternalTensor>>& parts);
// The tensors of `next` as an engine takes them.
NextTensor adopt_source(const TensorSource& next);
std::vector<WeightInfo> describe_weights(const std::vector<ReadableWeight>& weights, DType dtype);
std::unique_ptr<Checkpoint> adopt_tensors(const std::vector<ExternalTensor>& weights);

// engine_seconds: what making the engine took, weights included.
void tell_start_up(double device_seconds, double plan_seconds, double open_seconds, double engine_seconds,
                   double weight_seconds, ModelInfo& info);

}  // namespace quire
