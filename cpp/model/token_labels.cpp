// Rows of the head for text as a classifier; see token_labels.h.
#include "model/token_labels.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/check.h"
#include "base/dtype.h"
#include "base/hash.h"

namespace quire {
namespace {

class LabelledCheckpoint final : public Checkpoint {
 public:
  LabelledCheckpoint(std::unique_ptr<Checkpoint> main, std::vector<float> labels, int64_t rows, int64_t cols)
      : main_(std::move(main)), labels_(std::move(labels)), tensors_(main_->tensors()) {
    tensors_.push_back({"score.weight", DType::f32, {rows, cols}, labels_.data()});
  }
  const std::vector<CheckpointTensor>& tensors() const override { return tensors_; }
  void release(const CheckpointTensor& tensor) const override {
    if (tensor.data != labels_.data()) main_->release(tensor);
  }
  void release_all() const override { main_->release_all(); }
  // Which tokens the labels are is not said by the files.
  std::string describe_files() const override {
    const std::string files = main_->describe_files();
    if (files.empty()) return {};
    uint64_t hash = labels_.size();
    for (const float label : labels_) hash = hash_combine(hash, std::bit_cast<uint32_t>(label));
    return str_cat(files, "labels ", hash, "\n");
  }
  std::string reread_problem() const override { return main_->reread_problem(); }

 private:
  std::unique_ptr<Checkpoint> main_;
  std::vector<float> labels_;
  std::vector<CheckpointTensor> tensors_;
};

// The head for text: of a tied model the embedding, under its own name or, as some are saved, the head's.
std::vector<std::string> head_names(const ArchSpec& arch) {
  const std::string head = "lm_head.weight", &prefix = arch.weights.optional_prefix;
  if (!arch.tie_word_embeddings) return {head};
  const auto embedding = std::ranges::find(arch.weights.rules, Slot::embedding, &WeightRule::slot);
  QUIRE_CHECK(embedding != arch.weights.rules.end(), arch.name, " has no rule for its embedding");
  const std::string& name = embedding->name;
  const bool has_prefix = !prefix.empty() && name.starts_with(prefix);
  return {name, has_prefix ? name.substr(prefix.size()) : name, head};
}

const CheckpointTensor& find_head(const Checkpoint& checkpoint, const ArchSpec& arch) {
  const std::vector<std::string> names = head_names(arch);
  for (const std::string& name : names) {
    const auto found = std::ranges::find(checkpoint.tensors(), name, &CheckpointTensor::name);
    if (found == checkpoint.tensors().end()) continue;
    if (const std::string problem = label_source_problem(*found, arch); !problem.empty())
      throw InvalidArgument(problem);
    return *found;
  }
  throw InvalidArgument(
      str_cat("classifier_from_token takes rows of the model's head for text, but the checkpoint has "
              "no ",
              names.front()));
}

float element(const CheckpointTensor& tensor, int64_t index) {
  const auto i = static_cast<size_t>(index);
  switch (tensor.dtype) {
    case DType::f32:
      return static_cast<const float*>(tensor.data)[i];
    case DType::bf16:
      return bf16_to_float(static_cast<const uint16_t*>(tensor.data)[i]);
    case DType::f16:
      return f16_to_float(static_cast<const uint16_t*>(tensor.data)[i]);
    default:
      throw InvalidArgument(str_cat(tensor.name, ": a classifier cannot be made of ", dtype_name(tensor.dtype)));
  }
}

}  // namespace

bool is_label_source(const std::string& tensor_name, const ArchSpec& arch) {
  if (arch.pooler.label_token_ids.empty() || arch.pooler.head.empty()) return false;
  const std::vector<std::string> names = head_names(arch);
  return std::ranges::find(names, tensor_name) != names.end();
}

std::string label_source_problem(const CheckpointTensor& head, const ArchSpec& arch) {
  if (head.shape == std::vector<int64_t>{arch.vocab_size, arch.hidden}) return {};
  return str_cat(head.name, " is not of the shape [", arch.vocab_size, ", ", arch.hidden,
                 "] that config.json gives it");
}

std::vector<float> label_weights(const CheckpointTensor& head, const ArchSpec& arch) {
  const std::vector<int32_t>& ids = arch.pooler.label_token_ids;
  const int64_t cols = arch.hidden;
  const bool is_difference = arch.pooler.is_label_difference;
  const size_t rows = is_difference ? 1 : ids.size();
  std::vector<float> labels;
  labels.reserve(rows * static_cast<size_t>(cols));
  for (size_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      const auto value = [&](size_t token) { return element(head, ids[token] * cols + col); };
      labels.push_back(is_difference ? value(1) - value(0) : value(row));
    }
  }
  return labels;
}

std::unique_ptr<Checkpoint> with_token_labels(std::unique_ptr<Checkpoint> main, const ArchSpec& arch) {
  if (main == nullptr || arch.pooler.label_token_ids.empty() || arch.pooler.head.empty()) return main;
  std::vector<float> labels = label_weights(find_head(*main, arch), arch);
  const int64_t cols = arch.hidden, rows = static_cast<int64_t>(labels.size()) / cols;
  return std::make_unique<LabelledCheckpoint>(std::move(main), std::move(labels), rows, cols);
}

}  // namespace quire
