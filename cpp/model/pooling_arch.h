// From a decoder that writes text to one that is pooled: its head goes, a classifier or reward may come.
//
// Decides: which layers follow pooling, by the architecture's name and the labels of config.json, and how such models
// are usually pooled. Does not know: families. Load time.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "model/arch.h"

namespace quire {

// `arch` as a decoder's builder made it, under the name of config.json.
void make_pooling(const Json& config, ArchSpec& arch);

// Adds a layer behind those that the pooler has. `name` is that of the module: "<name>.weight" and, with a bias,
// "<name>.bias"; `norm_name` that of its norm.
void add_head_layer(const HeadLayer& layer, const std::string& name, ArchSpec& arch, const std::string& norm_name = "");

// Behind the last token: a classifier "score", or rows of the head for text (classifier_from_token, whose ids are under
// classifier_token_ids), which with_token_labels() finds.
void add_score_head(const Json& config, ArchSpec& arch);

// num_labels, or as many as id2label names; 2 when config.json says nothing, as in transformers.
int64_t num_labels(const Json& config);

// What turns the scores of a classifier into probabilities: softmax, or sigmoid for one label or several at once
// (problem_type), or nothing for a regression.
PoolingActivation classifier_activation(const Json& config);

// The same for a cross-encoder: what config.json names under sbert_ce_default_activation_function or
// sentence_transformers.activation_fn, else sigmoid for one label and nothing for several.
PoolingActivation score_activation(const Json& config);

}  // namespace quire
