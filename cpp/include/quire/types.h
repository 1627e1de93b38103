// The plain values of quire's API: what goes in and what comes out. Standard library only.
//
// Field names are those of vLLM's Python API; the lists that drive Python bindings, validation and docs are in
// engine/fields.h of the sources.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace quire {

// A sequence under a constraint that is about to draw its next token.
struct MaskRow {
  void* state = nullptr;                              // the sequence's, from TokenConstraint::start()
  std::span<const int32_t> prompt = {}, output = {};  // its tokens so far
  std::span<uint32_t> mask =
      {};                  // [(vocab_size + 31) / 32], zeros; set bit i % 32 of word i / 32: token i may come next
  std::string error = {};  // to be set when there is no mask: ends the request with FinishReason::error
};

// A token that was taken for such a sequence.
struct CommittedToken {
  void* state = nullptr;
  int32_t token_id = 0;
  bool is_last = false;    // to be set when nothing may follow: ends the sequence with FinishReason::stop
  std::string error = {};  // to be set when it could not be taken: ends the request with FinishReason::error
};

// What sequences may be written, token by token: grammars, tries, whatever fills a mask. Called on the thread that
// steps, with the engine locked; may use threads of its own. An exception ends the requests whose rows it was given.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  // The state of one sequence; a request of n sequences asks n times.
  virtual std::shared_ptr<void> start() = 0;
  // Once a step, with all its rows whose constraints have the same group(). On a GPU the forward pass is running
  // meanwhile. Called again with the same tokens when a step is repeated.
  virtual void fill_masks(std::span<MaskRow> rows) = 0;
  // Once a step, in the same groups.
  virtual void commit(std::span<CommittedToken> tokens) = 0;
  // A copy of a state, for a second sequence that goes on from the same tokens: beam search asks for it.
  virtual std::shared_ptr<void> fork(void*) { throw std::logic_error("this constraint cannot be forked"); }
  virtual const void* group() const { return this; }
};

// Changes the logits of a sequence's next token in place, given its tokens so far; may throw, which ends the request
// with FinishReason::error. On the thread that steps.
using LogitsProcessor =
    std::function<void(std::span<const int32_t> prompt, std::span<const int32_t> output, std::span<float> logits)>;

// How the next tokens of one request are chosen, and when it ends. docs: SamplingParams in Python.
struct SamplingParams {
  int32_t n = 1;  // sequences to generate from the prompt
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  float repetition_penalty = 1.0f;
  float temperature = 1.0f;  // below 1e-5: greedy
  float top_p = 1.0f;
  int32_t top_k = 0;  // 0 or -1: all tokens
  float min_p = 0.0f;
  std::optional<int64_t> seed = {};    // sequence i of n draws with seed + i
  std::vector<std::string> stop = {};  // needs set_vocabulary(); matched on UTF-8 bytes
  std::vector<int32_t> stop_token_ids = {};
  bool ignore_eos = false;
  std::optional<int32_t> max_tokens = 16;  // nullopt: up to max_model_len
  int32_t min_tokens = 0;
  std::optional<int32_t> logprobs = {};         // 0: of the sampled token; k: also of the k most likely
  std::optional<int32_t> prompt_logprobs = {};  // the same for every token of the prompt but the first
  std::vector<std::pair<int32_t, float>> logit_bias = {};
  std::vector<int32_t> allowed_token_ids = {};  // empty: all
  std::vector<std::vector<int32_t>> bad_words_token_ids = {};
  bool return_hidden_states = false;  // what the head reads, of the prompt's and of every sampled token
  bool return_logits = false;         // of every sampled token, as the model gives them
  // Code of the caller. While a request with either runs, a GPU's steps are not planned ahead. Log-probabilities are of
  // the logits that the processors leave, and do not see the constraint.
  std::vector<LogitsProcessor> logits_processors = {};    // in this order, before all else
  std::shared_ptr<TokenConstraint> constraint = nullptr;  // what it lets through is sampled, whatever else is asked
};

// How the most likely sequences are searched for. docs: BeamSearchParams in Python.
struct BeamSearchParams {
  int32_t beam_width = 4;  // sequences that are followed, and returned
  int32_t max_tokens = 16;
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids = {};     // they end a sequence as the end-of-sequence token does
  std::vector<std::string> stop = {};           // so do these; needs set_vocabulary()
  std::vector<int32_t> allowed_token_ids = {};  // empty: all
  double length_penalty = 1.0;                  // the score is cumulative_logprob / length^length_penalty
  // true: the length counts the prompt, and no stop token (vLLM 0.8); false: the generated tokens, with the stop token.
  bool length_includes_prompt = true;
  // What it lets through are the candidates, and their log-probabilities are of them alone; so with allowed_token_ids.
  std::shared_ptr<TokenConstraint> constraint = nullptr;
};

// How an engine is built. Zero or empty means: derive it.
struct EngineOptions {
  std::string dtype = "auto";  // auto, float32, float16, bfloat16
  // int8: the weights of linear layers are rounded to 8 bits as they are loaded, with a scale a row, and activations as
  // they are multiplied. On the cpu.
  std::string quantization = {};
  std::string device = "auto";
  std::string load_format = "auto";  // auto, safetensors, dummy
  // A folder for packed weights of checkpoints in safetensors files, where the next start maps them; a model takes as
  // much of the disk as of memory, all files together 64 GiB at most. Empty: none. On the cpu.
  std::string weight_cache = {};
  std::string config_overrides = {};  // a JSON object merged over config.json
  std::string cpu_isa = {};           // "", portable, avx2, avx512, amx
  int64_t max_model_len = 0;
  int64_t max_num_seqs = 256;
  int64_t max_num_batched_tokens = 0;
  int64_t long_prefill_token_threshold = 0;  // > 0: a prompt takes at most that many tokens of a step
  int32_t block_size = 16;                   // tokens a KV page
  bool enable_prefix_caching = true;
  bool enable_chunked_prefill = true;
  double gpu_memory_utilization = 0.9;  // of the device's memory, weights and workspace included
  // GiB of decoder layers that stay in host memory and pass through the device as they are needed; whole layers. No
  // effect on a CPU.
  double cpu_offload_gb = 0.0;
  int64_t kv_cache_memory_bytes = 0;
  int64_t num_gpu_blocks_override = 0;
  // On a GPU. Decode steps are replayed from graphs that are captured when their batch size first comes.
  bool enforce_eager = false;             // no graphs
  int64_t max_seq_len_to_capture = 8192;  // a step with a longer sequence is not replayed
  std::vector<int32_t> graph_sizes = {};  // batch sizes to capture; empty: 1, 2, 4 and multiples of 8 up to 256
  // What log-probabilities are: raw_logprobs, raw_logits (as the model gives them), processed_logprobs or
  // processed_logits (after bias, penalties, temperature and filters).
  std::string logprobs_mode = "raw_logprobs";
  std::string scheduling_policy = "fcfs";  // priority: requests with a smaller one go first, then in order of arrival
  bool async_scheduling = true;            // plan a step while the one before runs; results are the same
  bool batch_invariant = true;             // false: faster kernels for large products, whose bits depend on the batch
  // Speculative decoding: tokens are guessed, and one step checks several. Outputs are the same. "": none; ngram: what
  // followed the last prompt_lookup_max to prompt_lookup_min tokens when they first came in prompt and output;
  // draft_model: a smaller model with the same vocabulary.
  std::string speculative_method = {};
  int32_t num_speculative_tokens = 0;                    // guessed at most, in a step
  int32_t prompt_lookup_max = 0, prompt_lookup_min = 0;  // 0: the other one; both 0: 5
  std::string draft_model = {};                          // a directory
  int64_t draft_max_model_len = 0;  // longer sequences are not guessed; 0: what the draft model can, at most
  int64_t speculative_disable_by_batch_size = 0;  // > 0: no guesses while more sequences than that run
  int32_t num_threads = 0;                        // cpu; 0: OMP_NUM_THREADS, else the physical cores
  // Ranks that share the model, each with a thread and a device of its own; on a CPU they share out num_threads. 1
  // to 8.
  int32_t tensor_parallel_size = 1;
  // Sums between GPUs by NCCL, not by quire's own kernel: a GPU a rank, and for more than two ranks no batch_invariant,
  // since NCCL's order of a sum depends on the batch. No effect on a CPU or with one rank.
  bool disable_custom_all_reduce = false;
  double collective_timeout = 300.0;        // seconds that ranks wait for one that does not come
  uint64_t seed = 0;                        // of requests that bring none
  std::vector<int32_t> eos_token_ids = {};  // primary first; empty: from generation_config.json and config.json
};

// A tensor in the caller's memory, row-major; dtype "float32", "float16" or "bfloat16".
struct ExternalTensor {
  std::string name = {};
  std::string dtype = {};
  std::vector<int64_t> shape = {};
  const void* data = nullptr;
};

// Gives the next tensor, which lives until the next call; false: there are no more.
using TensorSource = std::function<bool(ExternalTensor&)>;

// A weight of a loaded model, as a checkpoint has it.
struct WeightInfo {
  std::string name = {};
  std::string dtype = {};  // of the model
  std::vector<int64_t> shape = {};
  std::string same_as = {};   // the weight that this one is (a tied head); empty: it is its own
  bool is_elsewhere = false;  // asked about a rank: it has no part of this one, the first rank has it for all
};

enum class FinishReason : uint8_t { none, stop, length, abort, error };

// Log-probabilities of tokens, flat: `width` entries a token, its own first, then the most likely.
struct LogprobBuffer {
  int32_t width = 0;  // 0: none were asked for
  std::vector<int32_t> token_ids = {};
  std::vector<float> logprobs = {};
  std::vector<int32_t> sampled_ranks = {};  // one a token, 1 = most likely
};

// Rows of numbers, flat.
struct RowBuffer {
  int64_t width = 0;  // 0: none were asked for
  std::vector<float> values = {};
};

// One of the n sequences of a request.
struct Completion {
  int32_t index = 0;
  std::vector<int32_t> token_ids = {};
  double cumulative_logprob = 0.0;
  LogprobBuffer logprobs = {};
  RowBuffer hidden_states = {};  // [num_tokens, hidden]: row i is what token i was sampled from
  RowBuffer logits = {};         // [num_tokens, vocab_size], before any processing
  FinishReason finish_reason = FinishReason::none;
  int32_t stop_token_id = -1;      // the stop token that ended it; -1 for the primary EOS and all else
  int32_t stop_string_index = -1;  // index into SamplingParams::stop
  bool is_complete = false;        // SamplingParams::constraint said that nothing may follow
};

// Seconds since the Unix epoch; 0 while it has not happened.
struct RequestTimes {
  double arrival = 0.0, first_scheduled = 0.0, first_token = 0.0, last_token = 0.0, finished = 0.0;
};

struct RequestOutput {
  uint64_t request_id = 0;
  std::vector<Completion> completions = {};
  LogprobBuffer prompt_logprobs = {};   // of the second prompt token and all after it
  RowBuffer prompt_hidden_states = {};  // [num_prompt_tokens, hidden]
  int64_t num_prompt_tokens = 0;
  int64_t num_cached_tokens = 0;  // prompt tokens found in the prefix cache
  int32_t num_preemptions = 0;
  RequestTimes times = {};
  // With speculative decoding: entry 0 counts the steps that gave a token, entry i those that gave i more. Their sum is
  // the number of generated tokens. Empty without it.
  std::vector<int64_t> spec_token_acceptance_counts = {};
  std::string error = {};  // with FinishReason::error
};

// What one step added to one sequence of a request.
struct Delta {
  uint64_t request_id = 0;
  int32_t index = 0;                    // which of the n sequences
  std::vector<int32_t> token_ids = {};  // new tokens
  LogprobBuffer logprobs = {};          // of the new tokens, where asked for
  double cumulative_logprob = 0.0;      // of all tokens so far
  LogprobBuffer prompt_logprobs = {};   // where asked for, with the first token of the first sequence
  FinishReason finish_reason = FinishReason::none;
  const RequestOutput* finished = nullptr;  // set once, when the last of the n sequences ended; valid during the call
};
using DeltaCallback = std::function<void(const Delta&)>;

// When a callback is called: for every token, or once, when the request has finished.
enum class Notify : uint8_t { every_token, finished };

// What becomes of requests that have not finished when an engine goes to sleep: they end with FinishReason::abort, are
// finished first, or stay queued and go on after wake_up() (what they had computed is computed again, with the same
// result).
enum class SleepMode : uint8_t { abort, wait, keep };

struct Stats {
  int64_t num_running = 0, num_waiting = 0;
  int64_t num_blocks = 0, num_free_blocks = 0, num_cached_blocks = 0;  // cached: evictable, not held by a sequence
  int64_t num_steps = 0, num_preemptions = 0;
  int64_t prompt_tokens = 0, cached_prompt_tokens = 0, generated_tokens = 0;
  int64_t prefix_cache_queries = 0, prefix_cache_hits = 0;  // tokens
  int64_t num_graphs = 0;                                   // decode steps captured, on a GPU
  int64_t num_draft_tokens = 0, num_accepted_tokens = 0;    // speculative decoding: guessed, and right
  double step_seconds = 0.0;                                // in step(), callbacks included
  double host_seconds = 0.0;                                // of that, not waiting for the device
  double capture_seconds = 0.0;                             // of that, capturing graphs
};

// How fast a CPU's threads read memory and compute in registers at most; rates are a second.
struct MachineLimits {
  std::string kernels;  // whose instructions were measured
  int32_t num_threads = 0;
  int64_t read_bytes = 0;  // read again and again; a cache that holds them is what was measured
  double read_bytes_per_second = 0.0;
  double bf16_flops = 0.0, f32_flops = 0.0;  // 0: not known for these instructions
};

// A plugin of this machine: where it is, or what keeps it from working; one line for users of each library it opens.
struct PluginInfo {
  std::string file, problem;
  int32_t num_devices = 0;
  std::vector<std::string> libraries = {};
};

// A figure of an engine, under the name that vLLM gives it.
struct Metric {
  enum class Type : uint8_t { counter, gauge, vector, histogram };
  std::string name = {};
  Type type = Type::counter;
  std::pair<std::string, std::string> label = {};  // empty: none
  double value = 0.0;                              // of a histogram: the sum of what was observed
  std::vector<double> bounds = {};                 // of a histogram: upper ends of its buckets, ascending
  std::vector<double> values = {};  // of a vector; of a histogram, how many fell into each bucket and beyond the last
};

struct ModelInfo {
  std::string architecture, dtype, quantization, device, kernels;
  int64_t max_model_len = 0, vocab_size = 0, num_layers = 0, hidden_size = 0, num_parameters = 0;
  int64_t offloaded_weight_bytes = 0;  // in host memory, not in weight_bytes
  int64_t weight_bytes = 0, workspace_bytes = 0, kv_cache_bytes = 0, kv_bytes_per_token = 0;
  int64_t step_bytes = 0;  // of the workspace, scratch of the largest step
  int64_t num_blocks = 0, block_size = 0, max_num_seqs = 0, max_num_batched_tokens = 0;
  int32_t num_threads = 0;
  int32_t tensor_parallel_size = 1;  // sizes above are of all ranks together
  struct OfRank {
    int64_t weight_bytes = 0, workspace_bytes = 0, kv_cache_bytes = 0;
  };
  std::vector<OfRank> ranks = {};  // one a rank, where there are several
  std::vector<int32_t> eos_token_ids = {};
  std::string pooling_type, pooling_activation;  // of a pooling model, with num_outputs columns of an answer
  int64_t num_outputs = 0;
  int64_t num_token_types = 0;  // that a token of a pooling model may have; 0: it has none
  double load_seconds = 0.0;
  // Of that: finding the device, planning memory, opening the checkpoint (files are mapped), reserving memory and
  // making tables, reading and packing weights.
  double device_seconds = 0.0, plan_seconds = 0.0, open_seconds = 0.0, memory_seconds = 0.0, weight_seconds = 0.0;
};

}  // namespace quire
