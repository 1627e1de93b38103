// The fields of the option structs, written once: bindings, validation messages and docs iterate these lists.
//
// visit(name, reference, doc) is called for every field in declaration order.
#pragma once

#include <concepts>
#include <type_traits>

#include "quire/pooling_types.h"
#include "quire/types.h"

namespace quire {

template <typename Params, typename Visit>
  requires std::same_as<std::remove_const_t<Params>, SamplingParams>
void for_each_field(Params& params, const Visit& visit) {
  visit("n", params.n, "number of sequences to generate from the prompt");
  visit("presence_penalty", params.presence_penalty, "[-2, 2], subtracted once from every token already generated");
  visit("frequency_penalty", params.frequency_penalty, "[-2, 2], subtracted for each time a token was generated");
  visit("repetition_penalty", params.repetition_penalty,
        "> 0, divides (or multiplies, if negative) seen tokens' logits");
  visit("temperature", params.temperature, ">= 0; below 1e-5 the most likely token is taken");
  visit("top_p", params.top_p, "(0, 1], mass of the smallest set of tokens to draw from");
  visit("top_k", params.top_k, "tokens to draw from; 0 or -1: all");
  visit("min_p", params.min_p, "[0, 1], least probability relative to the most likely token");
  visit("seed", params.seed, "of the random draws; none: derived from the engine's seed and the request's number");
  visit("stop", params.stop, "strings that end the output");
  visit("stop_token_ids", params.stop_token_ids, "token ids that end the output");
  visit("ignore_eos", params.ignore_eos, "go on after the end-of-sequence token");
  visit("max_tokens", params.max_tokens, "most tokens to generate; none: up to max_model_len");
  visit("min_tokens", params.min_tokens, "no end of any kind before that many tokens");
  visit("logprobs", params.logprobs, "log-probabilities a token: 0 the sampled one's, k also of the k most likely");
  visit("prompt_logprobs", params.prompt_logprobs, "the same of the prompt's tokens, the first one excepted");
  visit("logit_bias", params.logit_bias, "(token id, value) pairs added to the logits");
  visit("allowed_token_ids", params.allowed_token_ids, "only these may be generated; empty: all");
  visit("bad_words_token_ids", params.bad_words_token_ids, "token sequences that must not be completed");
  visit("return_hidden_states", params.return_hidden_states, "give back what the head reads, of prompt and output");
  visit("return_logits", params.return_logits, "give back the logits of every sampled token");
}

template <typename Params, typename Visit>
  requires std::same_as<std::remove_const_t<Params>, BeamSearchParams>
void for_each_field(Params& params, const Visit& visit) {
  visit("beam_width", params.beam_width, "sequences that are followed, and returned");
  visit("max_tokens", params.max_tokens, "most tokens to generate");
  visit("ignore_eos", params.ignore_eos, "go on after the end-of-sequence token");
  visit("stop_token_ids", params.stop_token_ids, "token ids that end a sequence");
  visit("stop", params.stop, "strings that end a sequence");
  visit("allowed_token_ids", params.allowed_token_ids, "only these may be generated; empty: all");
  visit("length_penalty", params.length_penalty, "the score is cumulative_logprob / length^length_penalty");
  visit("length_includes_prompt", params.length_includes_prompt, "the length counts the prompt, and no stop token");
}

template <typename Options, typename Visit>
  requires std::same_as<std::remove_const_t<Options>, EngineOptions>
void for_each_field(Options& options, const Visit& visit) {
  visit("dtype", options.dtype, "auto, float32, float16 or bfloat16");
  visit("quantization", options.quantization, "int8: weights of linear layers; empty: none");
  visit("device", options.device, "auto or cpu");
  visit("load_format", options.load_format, "auto, safetensors or dummy");
  visit("config_overrides", options.config_overrides, "a JSON object merged over config.json");
  visit("cpu_isa", options.cpu_isa, "portable, avx2, avx512 or amx; empty: the best the machine has");
  visit("max_model_len", options.max_model_len, "most tokens of a sequence; 0: the model's own");
  visit("max_num_seqs", options.max_num_seqs, "most sequences in a step");
  visit("max_num_batched_tokens", options.max_num_batched_tokens, "most tokens in a step; 0: chosen");
  visit("long_prefill_token_threshold", options.long_prefill_token_threshold, "most tokens of one prompt in a step");
  visit("block_size", options.block_size, "tokens a KV block");
  visit("enable_prefix_caching", options.enable_prefix_caching, "reuse computed prompt prefixes");
  visit("enable_chunked_prefill", options.enable_chunked_prefill, "spread long prompts over steps");
  visit("gpu_memory_utilization", options.gpu_memory_utilization, "share of the device's memory to use");
  visit("cpu_offload_gb", options.cpu_offload_gb, "GiB of layers to keep in host memory; no effect on a CPU");
  visit("kv_cache_memory_bytes", options.kv_cache_memory_bytes, "exact size of the KV cache; 0: chosen");
  visit("num_gpu_blocks_override", options.num_gpu_blocks_override, "exact number of KV blocks; 0: chosen");
  visit("enforce_eager", options.enforce_eager, "no captured graphs on a GPU");
  visit("max_seq_len_to_capture", options.max_seq_len_to_capture, "a step with a longer sequence is not replayed");
  visit("graph_sizes", options.graph_sizes, "batch sizes to capture; empty: 1, 2, 4 and multiples of 8 up to 256");
  visit("logprobs_mode", options.logprobs_mode, "raw_logprobs, raw_logits, processed_logprobs or processed_logits");
  visit("scheduling_policy", options.scheduling_policy,
        "fcfs, or priority: requests may bring one, smaller goes first");
  visit("async_scheduling", options.async_scheduling, "plan a step on a GPU while the one before runs");
  visit("batch_invariant", options.batch_invariant, "bits on a GPU do not depend on the batch; false: faster prefill");
  visit("speculative_method", options.speculative_method, "ngram or draft_model; empty: no speculative decoding");
  visit("num_speculative_tokens", options.num_speculative_tokens, "most tokens guessed in a step");
  visit("prompt_lookup_max", options.prompt_lookup_max, "ngram: longest suffix that is looked up");
  visit("prompt_lookup_min", options.prompt_lookup_min, "ngram: shortest suffix that is looked up");
  visit("draft_model", options.draft_model, "directory of the model that guesses");
  visit("draft_max_model_len", options.draft_max_model_len, "longer sequences are not guessed; 0: the draft model's");
  visit("speculative_disable_by_batch_size", options.speculative_disable_by_batch_size,
        "no guesses while more sequences run; 0: always");
  visit("weight_cache", options.weight_cache,
        "folder for packed weights of the cpu, which the next start maps; empty: none");
  visit("num_threads", options.num_threads, "kernel threads; 0: OMP_NUM_THREADS or the physical cores");
  visit("tensor_parallel_size", options.tensor_parallel_size, "ranks that share the model, 1 to 8");
  visit("disable_custom_all_reduce", options.disable_custom_all_reduce, "sums between GPUs by NCCL");
  visit("collective_timeout", options.collective_timeout, "seconds that ranks wait for one that does not come");
  visit("seed", options.seed, "of requests that bring none");
  visit("eos_token_ids", options.eos_token_ids, "end-of-sequence ids, primary first; empty: from the model's files");
}

template <typename Options, typename Visit>
  requires std::same_as<std::remove_const_t<Options>, PoolerOptions>
void for_each_field(Options& options, const Visit& visit) {
  visit("task", options.task, "embed, classify, score or reward");
  visit("pooling_type", options.pooling_type, "LAST, MEAN, CLS, ALL or STEP; empty: the model's");
  visit("normalize", options.normalize, "vectors of length 1; none: the model's way");
  visit("softmax", options.softmax, "probabilities; none: the model's way");
  visit("step_tag_id", options.step_tag_id, "the token whose rows STEP returns; none: all rows");
  visit("returned_token_ids", options.returned_token_ids, "columns to return; empty: all");
}

template <typename Params, typename Visit>
  requires std::same_as<std::remove_const_t<Params>, PoolingParams>
void for_each_field(Params& params, const Visit& visit) {
  visit("dimensions", params.dimensions, "> 0: the first of the vector, before it is normalized");
  visit("use_activation", params.use_activation, "false: no normalization, softmax or sigmoid; none: the model's way");
  visit("pooling_type", params.pooling_type, "LAST, MEAN, CLS, ALL or STEP; empty: the model's");
  visit("without_head", params.without_head, "hidden states, though the model has a classifier");
  visit("num_skipped_tokens", params.num_skipped_tokens, "tokens at the beginning that are read, but not pooled");
}

}  // namespace quire
