// quire::PoolingModel as Python sees it: calls that work release the GIL once, at their outermost point.
//
// Requests belong to calls, which several threads may have at once: they take turns stepping the one engine, and each
// fetches the outputs of its own.
#pragma once

#include <memory>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "bind/convert.h"
#include "bind/in_use.h"
#include "quire/pooling.h"

namespace quire::bind {

class PyPoolingEngine {
 public:
  PyPoolingEngine(const std::string& model_dir, const py::dict& options, const py::dict& pooler,
                  const py::object& weights);

  uint64_t open_call();
  // All of them or none. `token_types` is a list of lists or None, `params` one dict for all or a list of dicts.
  std::vector<uint64_t> submit_many(uint64_t call, const py::list& prompts, const py::object& token_types,
                                    const py::object& params);
  // Steps until a request of the call finished or max_ms passed; returns the finished ones.
  py::list run(uint64_t call, int max_ms);
  // Cancels what has not finished, and forgets the call. Does nothing when the engine is closed.
  void close_call(uint64_t call);
  void sleep(int32_t level, const std::string& mode);
  bool wake_up(const std::vector<std::string>& tags);
  bool is_sleeping();
  void start_recording();
  py::dict stop_recording();
  py::dict stats();
  py::list metrics();
  py::dict info();
  // Frees weights and threads now; waits for a step in progress, but for its own: throws within one.
  void close();

  // Calls use(model) without the GIL; raises RuntimeError when the engine is closed. close() waits for it.
  template <typename Use>
  auto with(const Use& use) {
    const py::gil_scoped_release release;
    const InUse in_use(this);
    const std::shared_lock lock(model_mutex_);
    if (model_ == nullptr) throw std::runtime_error("the engine is closed");
    return use(*model_);
  }

 private:
  // Filled by callbacks inside step(), emptied by run(). Shared with the callbacks, which may outlive a closed engine.
  struct Mailbox {
    std::mutex mutex;
    uint64_t next_call = 0;
    struct Call {
      std::vector<PoolingOutput> outputs;
      std::unordered_set<uint64_t> pending;
      std::unordered_set<uint64_t> early;  // finished by another thread before they were noted as pending
    };
    std::unordered_map<uint64_t, Call> calls;
  };

  PoolingCallback deliver(uint64_t call) const;
  bool fetch(uint64_t call, std::vector<PoolingOutput>& outputs);

  std::shared_mutex model_mutex_;  // exclusive: close; shared: everything else
  std::unique_ptr<PoolingModel> model_;
  std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();
};

void bind_pooling(py::module_& module);

}  // namespace quire::bind
