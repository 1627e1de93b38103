// Weights of API objects; see checkpoints.h. Load time, caller's thread.
#include "api/checkpoints.h"

#include <utility>

#include "base/check.h"
#include "model/packed_copy.h"
#include "quire/quire.h"

namespace quire {

std::unique_ptr<Checkpoint> open_checkpoint(const std::string& model_dir, const EngineOptions& options) {
  if (options.load_format == "dummy") return nullptr;
  if (options.load_format == "auto" || options.load_format == "safetensors") return open_safetensors(model_dir);
  throw NotSupported(str_cat("load_format=\"", options.load_format,
                             "\" is not supported; use \"auto\", \"safetensors\" or \"dummy\""));
}

CheckpointTensor adopt_tensor(const ExternalTensor& tensor) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::f64, DType::i64, DType::i32, DType::u8,
                            DType::boolean, DType::i8}) {
    if (dtype_name(dtype) == tensor.dtype) return {tensor.name, dtype, tensor.shape, tensor.data};
  }
  throw InvalidArgument(
      str_cat(tensor.name, " is of dtype ", tensor.dtype, "; give it as float32, float16, bfloat16 or float64"));
}

std::vector<CheckpointTensor> adopt_all(const std::vector<ExternalTensor>& tensors) {
  std::vector<CheckpointTensor> adopted;
  adopted.reserve(tensors.size());
  for (const ExternalTensor& tensor : tensors) adopted.push_back(adopt_tensor(tensor));
  return adopted;
}

NextTensor adopt_source(const TensorSource& next) {
  return [&next](CheckpointTensor& tensor) {
    ExternalTensor given;
    if (!next(given)) return false;
    tensor = adopt_tensor(given);
    return true;
  };
}

std::vector<WeightInfo> describe_weights(const std::vector<ReadableWeight>& weights, DType dtype) {
  std::vector<WeightInfo> described;
  described.reserve(weights.size());
  for (const ReadableWeight& weight : weights) {
    described.push_back(
        {weight.name, std::string(dtype_name(dtype)), weight.shape, weight.same_as, weight.is_elsewhere});
  }
  return described;
}

std::unique_ptr<Checkpoint> adopt_tensors(const std::vector<ExternalTensor>& weights) {
  return checkpoint_in_memory(adopt_all(weights));
}

std::vector<std::vector<CheckpointTensor>> adopt_parts(const std::vector<std::vector<ExternalTensor>>& parts) {
  std::vector<std::vector<CheckpointTensor>> tensors;
  tensors.reserve(parts.size());
  for (const std::vector<ExternalTensor>& of_rank : parts) tensors.push_back(adopt_all(of_rank));
  return tensors;
}

std::string problem_of_packed_weights(const std::string& file) { return problem_of_packed_file(file); }

void tell_start_up(double device_seconds, double plan_seconds, double open_seconds, double engine_seconds,
                   double weight_seconds, ModelInfo& info) {
  info.device_seconds = device_seconds;
  info.plan_seconds = plan_seconds;
  info.open_seconds = open_seconds;
  info.memory_seconds = engine_seconds - weight_seconds;
  info.weight_seconds = weight_seconds;
  info.load_seconds = device_seconds + plan_seconds + open_seconds + engine_seconds;
}

}  // namespace quire
