// What the encoders of arch/ share: blocks that read in both directions, and the names that several of them have.
//
// Decides: defaults of missing keys (those of BERT's configuration class), how classifiers of encoders are made. Does
// not know: any family. Load time.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "model/arch.h"
#include "model/arch_registry.h"

namespace quire {

// `config` with keys under their other names: {{"n_embd", "hidden_size"}}. A key that is not there stays away.
Json with_renamed_keys(const Json& config, std::initializer_list<std::pair<const char*, const char*>> names);

// `config` with values for keys that it lacks.
Json with_defaults(const Json& config, std::initializer_list<std::pair<const char*, Json>> values);

// Blocks with a LayerNorm after each half, biases everywhere, an ungated feed-forward; a norm of the embeddings, token
// types; no positions and no weight rules. Throws InvalidArgument when the heads do not divide the hidden size.
ArchSpec post_norm_encoder(const Json& config);

// Learned positions of which padding tokens have that of their id and others count from the next, so that the table has
// as many rows less.
void add_positions_behind_padding(const Json& config, int64_t padding_id, ArchSpec& arch);

// A module's weight and bias. Without a bias `bias` is `weight` again.
std::vector<WeightRule> linear_rules(const std::string& module, Slot weight, const std::vector<std::string>& shape,
                                     Slot bias);
std::vector<WeightRule> norm_rules(const std::string& module, Slot weight, Slot bias);
void append(std::vector<WeightRule> more, std::vector<WeightRule>& rules);

// "embeddings.word_embeddings" and the tables and the norm beside it that the spec has; `norm` is the norm's module.
std::vector<WeightRule> bert_embedding_rules(const ArchSpec& arch, const std::string& norm);
// BERT's blocks, "encoder.layer.{i}.attention.self.query".
std::vector<WeightRule> bert_layer_rules();
// Those of the encoders with rotary embedding as transformers itself has them, "layers.{i}.self_attn.q_proj", with the
// biases that the spec has. An ungated feed-forward is fc1 and fc2.
std::vector<WeightRule> rotary_layer_rules(const ArchSpec& arch);
// Names of heads that a checkpoint may have and nothing here computes: the pooler of BERT, heads for masked tokens.
void ignore_encoder_heads(WeightRules& weights);

// One vector from the first token, normalized.
void pool_first_token(ArchSpec& arch);
// `encoder` with a head behind the first token: tanh(dense(x)), then the labels; with the names of both modules.
ArchBuilder with_tanh_classifier(ArchBuilder encoder, const std::string& dense, const std::string& labels);
// `encoder` with labels of every token, "classifier".
ArchBuilder with_token_classifier(ArchBuilder encoder);

}  // namespace quire
