// quire: offline LLM inference, embedded. The whole public API.
//
//   quire::LLM llm("models/Qwen3-0.6B");
//   auto outputs = llm.generate({prompt_ids}, {.temperature = 0, .max_tokens = 64});
//
//   auto id = llm.submit(prompt_ids, {.max_tokens = 256}, [&](const quire::Delta& delta) { window.append(delta); });
//   while (llm.step()) { render_frame(); if (escape_pressed()) llm.cancel(id); }
//
// Token ids in, token ids out. No thread or loop is imposed: work happens inside generate() and step(), on the caller's
// thread and the engine's kernel threads. Thread-safe: several threads may submit, step and generate on one LLM.
// Errors: std::invalid_argument for a mistake of the caller (before any work), std::runtime_error for a feature that is
// not there or a failing device. Nothing else is lost by an error: other requests and the engine go on.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "quire/span.h"
#include "quire/types.h"
#include "quire/version.h"

namespace quire {

class QUIRE_API LLM {
 public:
  // A directory with config.json and safetensors, as saved by transformers.
  explicit LLM(const std::string& model_dir, const EngineOptions& options = {});
  // The same with the weights taken from memory, which may be freed afterwards.
  LLM(const std::string& model_dir, const EngineOptions& options, const std::vector<ExternalTensor>& weights);
  ~LLM();
  LLM(LLM&&) noexcept;
  LLM& operator=(LLM&&) noexcept;

  // Runs all prompts to their end and returns the outputs in prompt order.
  std::vector<RequestOutput> generate(const std::vector<std::vector<int32_t>>& prompts,
                                      const SamplingParams& params = {});

  // The most likely continuations of each prompt that a beam search finds, best first.
  std::vector<RequestOutput> beam_search(const std::vector<std::vector<int32_t>>& prompts,
                                         const BeamSearchParams& params = {});

  // Queues a request and returns its id; `on_delta` is called inside step(), whoever calls that. Of requests that wait,
  // the one with the smallest `priority` goes first (EngineOptions::scheduling_policy).
  uint64_t submit(std::vector<int32_t> prompt, const SamplingParams& params = {}, DeltaCallback on_delta = {},
                  Notify notify = Notify::every_token, int32_t priority = 0);
  // The same for a beam search; `on_delta` is called once, when it has finished.
  uint64_t submit_beam_search(std::vector<int32_t> prompt, const BeamSearchParams& params = {},
                              DeltaCallback on_delta = {});
  // Runs one step of the whole batch. False when nothing was left to do, or while it sleeps.
  bool step();
  // Ends a request with FinishReason::abort (its callback is told). False when there is no such request.
  bool cancel(uint64_t request_id);

  // Throws what submit() would throw, and does nothing else.
  void check(const std::vector<int32_t>& prompt, const SamplingParams& params, int32_t priority = 0) const;
  // The bytes of each token id, needed for stop strings (an empty entry: a special token without text).
  void set_vocabulary(std::vector<std::string> token_bytes);
  // Forgets cached prefixes. False, and no change, while sequences are running.
  bool reset_prefix_cache();

  // Gives memory back, which is free on return, until wake_up(). Level 0 only stops the steps. At level 1 the weights
  // come back by themselves (from host memory on a GPU; on a CPU they are packed again from the checkpoint's files) and
  // the KV cache is dropped; at level 2 the weights are dropped, and others have to be loaded after wake_up(). While
  // it sleeps, requests are refused with std::invalid_argument. Throws in a callback.
  void sleep(int32_t level = 1, SleepMode mode = SleepMode::abort);
  // Wakes what the tags name ("weights", "kv_cache", "scheduling"), without any all of it; true when all is awake. A
  // tag that is unknown or awake logs a warning. When it throws, what slept sleeps on.
  bool wake_up(const std::vector<std::string>& tags = {});
  bool is_sleeping() const;
  // After sleep(0): drops the KV cache too. What was computed is computed again after wake_up().
  void release_kv_cache_memory();
  // Replaces weights by tensors of a checkpoint's names, in any order, all of them or a few; each is read before the
  // next one is asked for. Returns how often weights have changed. Cached prefixes are forgotten. Throws
  // std::invalid_argument: requests are in flight; names or shapes that do not fit, all at once. When it throws, also
  // what `next` throws, weights are as they were: for that host memory holds the old values of what was replaced until
  // it returns. atomic=false spares that memory; then a failure midway leaves a model that takes no requests until all
  // of its weights have been given again.
  uint64_t load_weights(const TensorSource& next, bool atomic = true);
  // Throws what load_weights would say to tensors of these names, dtypes and shapes; no data is needed.
  void check_weights(const std::vector<ExternalTensor>& tensors) const;
  // All weights of a directory (empty: dummy values), or of a checkpoint in memory. One that does not fit changes
  // nothing.
  uint64_t reload_weights(const std::string& model_dir);
  uint64_t reload_weights(const std::vector<ExternalTensor>& tensors);
  // How often weights have changed since they were loaded.
  uint64_t weights_version() const;
  // The weights as a checkpoint names and shapes them, and the elements of one, row-major.
  std::vector<WeightInfo> weights() const;
  std::vector<std::byte> read_weight(const std::string& name) const;
  // The same of one rank, where several share the model: names of whole weights, shapes and elements of its parts.
  std::vector<WeightInfo> weights_of_rank(int32_t rank) const;
  std::vector<std::byte> read_weight_of_rank(int32_t rank, const std::string& name) const;
  // Replaces parts: a list a rank. All of them or none, and as one change.
  uint64_t load_weights_of_ranks(const std::vector<std::vector<ExternalTensor>>& parts);

  // From now on the parts of each step, and the kernels in them, are recorded. On a CPU it costs about 0.1 us a kernel;
  // on a GPU steps are launched kernel by kernel meanwhile, not replayed from graphs. Results are the same bits. Throws
  // while a recording is under way.
  void start_recording();
  Recording stop_recording();

  Stats stats() const;
  // Gauges and counters of Stats, and what finished requests were like, under vLLM's names.
  std::vector<Metric> metrics() const;
  const ModelInfo& info() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// What loading `model_dir` with these options would take, without loading it.
QUIRE_API ModelInfo plan_model(const std::string& model_dir, const EngineOptions& options = {});
// Throws std::invalid_argument when a value is out of range (the messages of vLLM's SamplingParams).
QUIRE_API void validate(const SamplingParams& params);
// Where log lines go (level: 0 debug, 1 info, 2 warning, 3 error). Empty: warnings and errors to stderr.
QUIRE_API void set_log_callback(std::function<void(int level, const std::string& message)> callback);
// Folders with NVIDIA's libraries, for the plugin of a GPU; it is told when the first device of its kind is made.
QUIRE_API void set_library_folders(std::vector<std::string> folders);
// The file of a plugin ("cuda"), where it would be found; empty: there is none. Loads nothing.
QUIRE_API std::string find_plugin(const std::string& backend);
// Loads the plugin of "cuda" and asks it. Throws nothing of what keeps it from working: `problem` says it.
QUIRE_API PluginInfo describe_plugin(const std::string& backend);
// Measures the CPU for about a second; 0 threads: as many as an engine takes. Other work on it lowers the figures.
QUIRE_API MachineLimits measure_machine(const std::string& cpu_isa = {}, int32_t num_threads = 0,
                                        int64_t read_bytes = int64_t{512} << 20);
// What is wrong with a file of EngineOptions::weight_cache, all of which is read; empty: nothing.
QUIRE_API std::string problem_of_packed_weights(const std::string& file);
// The architectures this build can run.
QUIRE_API std::vector<std::string> supported_architectures();

}  // namespace quire
