// A classifier made of rows of the head for text: rerankers that answer with a token ("yes").
//
// Decides: where the rows are and what is done to them. Does not know: names of tokens; packing. Load time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/weight_loader.h"

namespace quire {

// `main` with a "score.weight" in float32 beside its tensors, made as PoolerSpec::label_token_ids says; `main` itself
// when that is empty or there is no checkpoint. Throws InvalidArgument when the checkpoint has no head for text.
std::unique_ptr<Checkpoint> with_token_labels(std::unique_ptr<Checkpoint> main, const ArchSpec& arch);

// The same for one tensor: whether it is the head for text that a classifier of `arch` is made of, and the classifier's
// rows, one after the other. Empty: the shape is right.
bool is_label_source(const std::string& tensor_name, const ArchSpec& arch);
std::string label_source_problem(const CheckpointTensor& head, const ArchSpec& arch);
std::vector<float> label_weights(const CheckpointTensor& head, const ArchSpec& arch);

}  // namespace quire
