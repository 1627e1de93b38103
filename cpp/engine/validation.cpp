// Ranges and messages; see validation.h.
#include "engine/validation.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>

#include "base/check.h"

namespace quire {
namespace {

// As Python prints a float: shortest form, with ".0" when it looks like an integer.
std::string number(float value) {
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;
  std::string text(buffer, end);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

void check_penalty(const char* name, float value) {
  require(value >= -2.0f && value <= 2.0f, str_cat(name, " must be in [-2, 2], got ", number(value), "."));
}

std::string list_of(const std::vector<int32_t>& ids) {
  std::string text = "[";
  for (size_t i = 0; i < ids.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(ids[i]);
  return text + "]";
}

void check_token_ids(const SamplingParams& params, int64_t vocab_size) {
  const auto outside = [&](int32_t id) { return id < 0 || id >= vocab_size; };
  require(std::ranges::none_of(params.allowed_token_ids, outside), "allowed_token_ids contains out-of-vocab token id!");
  std::vector<int32_t> bad;
  for (const auto& [id, bias] : params.logit_bias) {
    if (outside(id)) bad.push_back(id);
  }
  require(bad.empty(), str_cat("token_id(s) ", list_of(bad), " in logit_bias contain out-of-vocab token ids. ",
                               "Vocabulary size: ", vocab_size));
  for (const auto& word : params.bad_words_token_ids) {
    require(!word.empty(), "bad_words contains a word without tokens");
    require(std::ranges::none_of(word, outside),
            str_cat("The model vocabulary size is ", vocab_size,
                    ", but the following tokens were specified as bad: ", list_of(word)));
  }
}

void check_prompt(std::span<const int32_t> prompt, const ModelLimits& limits) {
  require(!prompt.empty(), "The decoder prompt cannot be empty");
  for (const int32_t id : prompt) {
    require(id >= 0 && id < limits.vocab_size, str_cat("Token id ", id, " is out of vocabulary"));
  }
  const auto length = static_cast<int64_t>(prompt.size());
  require(
      length < limits.max_model_len,
      str_cat("The decoder prompt (length ", length, ") is longer than the maximum model length of ",
              limits.max_model_len, ". Make sure that `max_model_len` is no smaller than the number of text tokens."));
}

}  // namespace

void validate_sampling_params(const SamplingParams& params) {
  require(params.n >= 1, str_cat("n must be at least 1, got ", params.n, "."));
  check_penalty("presence_penalty", params.presence_penalty);
  check_penalty("frequency_penalty", params.frequency_penalty);
  require(params.repetition_penalty > 0.0f,
          str_cat("repetition_penalty must be greater than zero, got ", number(params.repetition_penalty), "."));
  require(params.temperature >= 0.0f && std::isfinite(params.temperature),
          str_cat("temperature must be non-negative, got ", number(params.temperature), "."));
  require(params.top_p > 0.0f && params.top_p <= 1.0f,
          str_cat("top_p must be in (0, 1], got ", number(params.top_p), "."));
  require(params.top_k >= -1, str_cat("top_k must be -1 (disable), or at least 1, got ", params.top_k, "."));
  require(params.min_p >= 0.0f && params.min_p <= 1.0f,
          str_cat("min_p must be in [0, 1], got ", number(params.min_p), "."));
  require(!params.max_tokens.has_value() || *params.max_tokens >= 1,
          str_cat("max_tokens must be at least 1, got ", params.max_tokens.value_or(0), "."));
  require(params.min_tokens >= 0,
          str_cat("min_tokens must be greater than or equal to 0, got ", params.min_tokens, "."));
  require(!params.max_tokens.has_value() || params.min_tokens <= *params.max_tokens,
          str_cat("min_tokens must be less than or equal to max_tokens=", params.max_tokens.value_or(0), ", got ",
                  params.min_tokens, "."));
  require(params.logprobs.value_or(0) >= 0,
          str_cat("logprobs must be non-negative, got ", params.logprobs.value_or(0), "."));
  require(params.prompt_logprobs.value_or(0) >= 0,
          str_cat("prompt_logprobs must be non-negative, got ", params.prompt_logprobs.value_or(0), "."));
  require(std::ranges::none_of(params.stop, &std::string::empty), "stop cannot contain an empty string.");
  require(params.temperature >= 1e-5f || params.n == 1,
          str_cat("n must be 1 when using greedy sampling, got ", params.n, "."));
}

void validate_beam_search_params(const BeamSearchParams& params) {
  require(params.beam_width >= 1 && params.beam_width <= kMaxBeamWidth,
          str_cat("beam_width must be in [1, ", kMaxBeamWidth, "], got ", params.beam_width, "."));
  require(params.max_tokens >= 1, str_cat("max_tokens must be at least 1, got ", params.max_tokens, "."));
  require(std::isfinite(params.length_penalty),
          str_cat("length_penalty must be finite, got ", number(static_cast<float>(params.length_penalty)), "."));
  require(std::ranges::none_of(params.stop, &std::string::empty), "stop cannot contain an empty string.");
}

void validate_request(std::span<const int32_t> prompt, const BeamSearchParams& params, const ModelLimits& limits) {
  validate_beam_search_params(params);
  check_prompt(prompt, limits);
  const auto outside = [&](int32_t id) { return id < 0 || id >= limits.vocab_size; };
  require(std::ranges::none_of(params.stop_token_ids, outside),
          str_cat("stop_token_ids ", list_of(params.stop_token_ids),
                  " contain ids out of vocabulary. Vocabulary size: ", limits.vocab_size));
  require(std::ranges::none_of(params.allowed_token_ids, outside), "allowed_token_ids contains out-of-vocab token id!");
  require(params.stop.empty() || limits.has_vocabulary,
          "stop strings need the text of the tokens: call set_vocabulary() first, or use stop_token_ids");
}

void validate_request(std::span<const int32_t> prompt, const SamplingParams& params, const ModelLimits& limits) {
  validate_sampling_params(params);
  check_prompt(prompt, limits);
  require(params.logprobs.value_or(0) <= limits.vocab_size,
          str_cat("Requested sample logprobs of ", params.logprobs.value_or(0),
                  ", which is greater than max allowed: ", limits.vocab_size));
  require(params.prompt_logprobs.value_or(0) <= limits.vocab_size,
          str_cat("Requested prompt logprobs of ", params.prompt_logprobs.value_or(0),
                  ", which is greater than max allowed: ", limits.vocab_size));
  require(params.stop.empty() || limits.has_vocabulary,
          "stop strings need the text of the tokens: call set_vocabulary() first, or use stop_token_ids");
  check_token_ids(params, limits.vocab_size);
}

}  // namespace quire
