// quire::LLM as Python sees it: calls that work release the GIL once, at their outermost point.
//
// Results of callbacks are collected here without the GIL and fetched by run(). Several threads may call run() with
// their own ids at once: they take turns stepping the one engine, and everybody's results are kept until fetched.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <unordered_map>
#include <vector>

#include "bind/convert.h"
#include "bind/in_use.h"
#include "quire/quire.h"

namespace quire::bind {

class PyEngine {
 public:
  PyEngine(const std::string& model_dir, const py::dict& options, const py::object& weights);

  uint64_t submit(const py::object& prompt, const py::dict& params, bool stream, int32_t priority);
  std::vector<uint64_t> submit_many(const py::list& prompts, const py::object& params,
                                    const std::vector<int32_t>& priorities);
  // All of them or none.
  std::vector<uint64_t> submit_beam_search(const py::list& prompts, const py::dict& params);
  // Steps until one of the requests finished, a streamed one got tokens, or max_ms passed. Returns (outputs, deltas).
  py::tuple run(const std::vector<uint64_t>& request_ids, int max_ms);
  bool cancel(uint64_t request_id);
  void set_vocabulary(std::vector<std::string> token_bytes);
  bool reset_prefix_cache();
  // mode: "abort", "wait" or "keep".
  void sleep(int32_t level, const std::string& mode);
  bool wake_up(const std::vector<std::string>& tags);
  bool is_sleeping();
  void release_kv_cache_memory();
  void start_recording();
  py::dict stop_recording();
  py::dict stats();
  py::list metrics();
  py::dict info();
  // Frees weights, cache and threads now; waits for a step in progress, but for its own: throws within one.
  void close();

  // Calls use(llm) without the GIL; raises RuntimeError when the engine is closed. close() waits for it.
  template <typename Use>
  auto with(const Use& use) {
    const py::gil_scoped_release release;
    const InUse in_use(this);
    const std::shared_lock lock(llm_mutex_);
    if (llm_ == nullptr) throw std::runtime_error("the engine is closed");
    return use(*llm_);
  }

 private:
  struct Mail {
    std::vector<Delta> deltas;
    std::unique_ptr<RequestOutput> output;
  };
  // Filled by callbacks inside step(), emptied by run(). Shared with the callbacks, which may outlive a closed engine.
  struct Mailbox {
    std::mutex mutex;
    std::unordered_map<uint64_t, Mail> mail;
  };

  DeltaCallback deliver() const;
  uint64_t post(LLM& llm, std::vector<int32_t> prompt, const SamplingParams& params, bool stream, int32_t priority);
  // Requests of a call that was refused in its midst.
  void take_back(LLM& llm, const std::vector<uint64_t>& ids) const;
  bool fetch(const std::vector<uint64_t>& request_ids, std::vector<RequestOutput>& outputs, std::vector<Delta>& deltas);

  std::shared_mutex llm_mutex_;  // exclusive: close; shared: everything else
  std::unique_ptr<LLM> llm_;
  std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();
};

void bind_outputs(py::module_& module);
// The spans as a list of dicts, and how many found no room.
py::dict recording_dict(const Recording& recording);
py::list metrics_list(const std::vector<Metric>& metrics);
py::dict model_info_dict(const ModelInfo& info);
SleepMode sleep_mode(const std::string& mode);
// Between two looks at an engine that another thread put to sleep.
void wait_a_little();

}  // namespace quire::bind
