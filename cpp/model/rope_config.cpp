// Reading of rotary embedding parameters in both spellings of config.json; see arch_common.h.
#include <algorithm>
#include <array>
#include <cmath>

#include "model/arch_common.h"

namespace quire {
namespace {

constexpr std::array<std::string_view, 17> kKnownKeys = {
    "rope_theta",
    "rope_type",
    "type",
    "partial_rotary_factor",
    "factor",
    "beta_fast",
    "beta_slow",
    "original_max_position_embeddings",
    "short_factor",
    "long_factor",
    "attention_factor",
    "low_freq_factor",
    "truncate",
    "high_freq_factor",
    "mscale",
    "mscale_all_dim",
    "finetuned"};  // YaRN's own models say how they were made; it changes nothing

// The object with the parameters of this layer type; empty when there is none.
Json rope_parameters(const Json& config, std::string_view layer_type) {
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const auto found = config.find(key);
    if (found == config.end() || found->is_null() || (found->is_object() && found->empty())) continue;
    if (!found->is_object())
      throw InvalidArgument(str_cat("config key \"", key, "\" is ", found->dump(), ", not an object"));
    const bool nested = found->contains("full_attention") || found->contains("sliding_attention");
    if (!nested) return *found;
    const auto of_type = found->find(std::string(layer_type));
    if (of_type == found->end() || !of_type->is_object()) {
      throw NotSupported(str_cat("config key \"", key, "\" has no parameters for the layers of type ", layer_type,
                                 "; layers without rotary embedding are not supported"));
    }
    return *of_type;
  }
  return Json::object();
}

RopeScaling scaling_of(const Json& parameters) {
  const auto type =
      json_get<std::string>(parameters, "rope_type", json_get<std::string>(parameters, "type", "default"));
  if (type == "default") return RopeScaling::none;
  if (type == "linear") return RopeScaling::linear;
  if (type == "dynamic") return RopeScaling::dynamic;
  if (type == "llama3") return RopeScaling::llama3;
  if (type == "yarn") return RopeScaling::yarn;
  if (type == "longrope" || type == "su") return RopeScaling::longrope;  // "su" is its name in the first Phi-3 models
  throw NotSupported(str_cat("rope_type \"", type,
                             "\" is not supported; supported: default, linear, dynamic, llama3, yarn, longrope"));
}

double positive(const Json& parameters, const char* key, double missing) {
  const double value = json_get<double>(parameters, key, missing);
  if (!(value > 0.0) || !std::isfinite(value)) {
    throw InvalidArgument(str_cat("rope parameter \"", key, "\" must be a positive number, got ",
                                  parameters.contains(key) ? parameters[key].dump() : std::string("nothing")));
  }
  return value;
}

// The trained length: a top-level key counts before the one in the object, as in transformers.
int64_t original_length(const Json& config, const Json& parameters) {
  constexpr const char* kKey = "original_max_position_embeddings";
  if (const int64_t top = config_size_or(config, {kKey}, 0); top > 0) return top;
  if (const int64_t inner = config_size_or(parameters, {kKey}, 0); inner > 0) return inner;
  return config_size(config, {"max_position_embeddings"});
}

// YaRN's temperature, folded into cosines and sines.
double yarn_attention_factor(const Json& parameters, double factor) {
  const auto mscale_of = [&](double mscale) { return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; };
  if (const auto given = parameters.find("attention_factor"); given != parameters.end() && !given->is_null()) {
    return positive(parameters, "attention_factor", 0.0);
  }
  const double mscale = json_get<double>(parameters, "mscale", 0.0);
  const double mscale_all_dim = json_get<double>(parameters, "mscale_all_dim", 0.0);
  if (mscale != 0.0 && mscale_all_dim != 0.0) return mscale_of(mscale) / mscale_of(mscale_all_dim);
  return mscale_of(1.0);
}

double longrope_attention_factor(const Json& parameters, double factor, int64_t original) {
  const double derived =
      factor <= 1.0 ? 1.0 : std::sqrt(1.0 + std::log(factor) / std::log(static_cast<double>(original)));
  return positive(parameters, "attention_factor", derived);
}

std::vector<double> factor_list(const Json& parameters, const char* key, int32_t rotary_dim) {
  auto factors = json_require<std::vector<double>>(parameters, key);
  const bool valid = std::ranges::all_of(factors, [](double factor) { return factor > 0.0; });
  if (!valid || factors.size() != static_cast<size_t>(rotary_dim / 2)) {
    throw InvalidArgument(str_cat("rope parameter \"", key, "\" must be ", rotary_dim / 2,
                                  " positive numbers, half the rotary dimension; got ", parameters[key].dump()));
  }
  return factors;
}

void parse_scaling(const Json& config, const Json& parameters, RopeSpec& rope) {
  const double model_length = static_cast<double>(config_size_or(config, {"max_position_embeddings"}, 0));
  const bool has_factor = parameters.contains("factor") && !parameters["factor"].is_null();
  switch (rope.scaling) {
    case RopeScaling::none:
      return;
    case RopeScaling::dynamic:
      rope.original_max_positions = config_size(config, {"max_position_embeddings"});
      if (rope.rotary_dim <= 2) throw InvalidArgument("dynamic rope scaling needs a rotary dimension above 2");
      [[fallthrough]];
    case RopeScaling::linear:
      rope.factor = positive(parameters, "factor", 0.0);
      return;
    case RopeScaling::llama3:
      rope.original_max_positions = original_length(config, parameters);
      rope.factor = positive(parameters, "factor", 0.0);
      rope.low_freq_factor = positive(parameters, "low_freq_factor", 0.0);
      rope.high_freq_factor = positive(parameters, "high_freq_factor", 0.0);
      if (rope.high_freq_factor <= rope.low_freq_factor) {
        throw InvalidArgument(str_cat("rope parameter \"high_freq_factor\" (", rope.high_freq_factor,
                                      ") must be greater than \"low_freq_factor\" (", rope.low_freq_factor, ")"));
      }
      return;
    case RopeScaling::yarn:
    case RopeScaling::longrope:
      break;
  }
  rope.original_max_positions = original_length(config, parameters);
  rope.factor = has_factor ? positive(parameters, "factor", 0.0)
                           : model_length / static_cast<double>(rope.original_max_positions);
  if (rope.scaling == RopeScaling::longrope) {
    rope.short_factor = factor_list(parameters, "short_factor", rope.rotary_dim);
    rope.long_factor = factor_list(parameters, "long_factor", rope.rotary_dim);
    rope.attention_factor = longrope_attention_factor(parameters, rope.factor, rope.original_max_positions);
    return;
  }
  // Zero stands for the default, as in transformers.
  const double beta_fast = json_get<double>(parameters, "beta_fast", 0.0);
  const double beta_slow = json_get<double>(parameters, "beta_slow", 0.0);
  rope.beta_fast = beta_fast == 0.0 ? 32.0 : beta_fast;
  rope.beta_slow = beta_slow == 0.0 ? 1.0 : beta_slow;
  rope.truncate = json_get<bool>(parameters, "truncate", true);
  rope.attention_factor = yarn_attention_factor(parameters, rope.factor);
}

}  // namespace

RopeSpec parse_rope(const Json& config, int32_t head_dim, std::string_view layer_type) {
  const Json parameters = rope_parameters(config, layer_type);
  for (const auto& [key, value] : parameters.items()) {
    if (!value.is_null() && std::ranges::find(kKnownKeys, key) == kKnownKeys.end()) {
      throw NotSupported(str_cat("rope parameter \"", key, "\" (value ", value.dump(), ") is not supported"));
    }
  }
  RopeSpec rope;
  rope.theta = positive(parameters, "rope_theta", positive(config, "rope_theta", 10000.0));
  const double fraction = positive(parameters, "partial_rotary_factor", positive(config, "partial_rotary_factor", 1.0));
  rope.rotary_dim = static_cast<int32_t>(head_dim * fraction);
  if (rope.rotary_dim < 2 || rope.rotary_dim > head_dim || rope.rotary_dim % 2 != 0) {
    throw NotSupported(str_cat("a rotary dimension of ", rope.rotary_dim, " (head_dim ", head_dim,
                               " times partial_rotary_factor ", fraction,
                               ") is not supported; it must be even and at most head_dim"));
  }
  rope.scaling = scaling_of(parameters);
  parse_scaling(config, parameters, rope);
  return rope;
}

}  // namespace quire
