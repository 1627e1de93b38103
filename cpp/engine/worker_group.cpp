// Threads of ranks, and what is told of those that fail; see worker_group.h.
//
// A rank's state is held by its thread too: one that hangs keeps its own memory until it comes back, if it ever does,
// and nothing else waits for it.
#include "engine/worker_group.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "comm/open_group.h"

namespace quire {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kSpinTime = std::chrono::microseconds(50);
constexpr double kGraceSeconds = 2.0;  // for ranks that were told to give up, after one was waited for in vain

// Until done(), at most kSpinTime.
template <typename Done>
bool spin(const Done& done) {
  const auto end = Clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
    }
  } while (Clock::now() < end);
  return done();
}

// A checkpoint that several ranks read: its pages may go when the last one is done with them.
class SharedCheckpoint final : public Checkpoint {
 public:
  SharedCheckpoint(const Checkpoint& checkpoint, int32_t num_readers)
      : checkpoint_(checkpoint), num_readers_(num_readers) {}
  const std::vector<CheckpointTensor>& tensors() const override { return checkpoint_.tensors(); }
  std::string describe_files() const override { return checkpoint_.describe_files(); }
  void release(const CheckpointTensor& tensor) const override {
    const std::lock_guard lock(mutex_);
    if (++num_done_[&tensor] % num_readers_ == 0) checkpoint_.release(tensor);
  }

 private:
  const Checkpoint& checkpoint_;
  const int32_t num_readers_;
  mutable std::mutex mutex_;
  mutable std::map<const CheckpointTensor*, int32_t> num_done_;
};

// `error` again, with `prefix` before its message.
[[noreturn]] void rethrow_with(const std::string& prefix, const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const MissingRank&) {
    throw;  // names the rank itself
  } catch (const OutOfMemory& e) {
    throw OutOfMemory(prefix + e.what());
  } catch (const DeviceError& e) {
    throw DeviceError(prefix + e.what());
  } catch (const NotSupported& e) {
    throw NotSupported(prefix + e.what());
  } catch (const InvalidArgument& e) {
    throw InvalidArgument(prefix + e.what());
  } catch (const std::logic_error& e) {
    throw InternalError(prefix + e.what());
  } catch (const std::exception& e) {
    throw std::runtime_error(prefix + e.what());
  }
}

bool is_abort(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const CollectiveAborted&) {
    return true;
  } catch (...) {
    return false;
  }
}

std::string message_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "unknown error";
  }
}

}  // namespace

// Destroyed in this order reversed: workers name the configurations and the group.
struct WorkerGroup::Shared {
  std::vector<EngineConfig> configs;
  std::unique_ptr<CommunicatorGroup> communicators;
};

class WorkerGroup::RankThread {
 public:
  RankThread(std::shared_ptr<Shared> shared, int rank, std::unique_ptr<Device> device) : state_(new State) {
    state_->shared = std::move(shared);
    state_->rank = rank;
    state_->worker = std::make_unique<Worker>(state_->shared->configs.at(static_cast<size_t>(rank)), std::move(device),
                                              &state_->shared->communicators->rank(rank));
    thread_ = std::thread([state = state_] { state->serve(); });
  }
  // A rank that hangs is not waited for.
  ~RankThread() {
    {
      const std::lock_guard lock(state_->mutex);
      state_->stop = true;
    }
    state_->changed.notify_all();
    if (is_idle()) {
      thread_.join();
    } else {
      thread_.detach();
    }
  }
  RankThread(const RankThread&) = delete;
  RankThread& operator=(const RankThread&) = delete;

  void post(VerbFunction function, const void* verb) {
    {
      const std::lock_guard lock(state_->mutex);
      state_->function = function;
      state_->verb = verb;
      state_->error = nullptr;
      state_->num_posted.fetch_add(1, std::memory_order_release);
    }
    state_->changed.notify_all();
  }
  bool is_idle() const { return state_->is_idle(); }
  bool wait_until(Clock::time_point deadline) const {
    if (spin([&] { return is_idle(); })) return true;
    std::unique_lock lock(state_->mutex);
    return state_->changed.wait_until(lock, deadline, [&] { return is_idle(); });
  }
  // Of the last verb; the thread is idle.
  const std::exception_ptr& error() const { return state_->error; }
  bool usable() const { return state_->worker->device().usable(); }
  Worker& worker() const { return *state_->worker; }

 private:
  struct State {
    std::shared_ptr<Shared> shared;
    int rank = 0;
    std::unique_ptr<Worker> worker;
    std::mutex mutex;
    std::condition_variable changed;
    std::atomic<uint64_t> num_posted{0}, num_done{0};
    bool stop = false;  // guarded by mutex
    VerbFunction function = nullptr;
    const void* verb = nullptr;
    std::exception_ptr error;

    bool is_idle() const { return num_done.load(std::memory_order_acquire) == num_posted.load(); }
    void serve() {
      for (;;) {
        spin([&] { return !is_idle(); });
        {
          std::unique_lock lock(mutex);
          changed.wait(lock, [&] { return stop || !is_idle(); });
          if (stop) return;
        }
        try {
          function(verb, *worker);
        } catch (...) {
          error = std::current_exception();
          shared->communicators->abort(str_cat("rank ", rank, " failed: ", message_of(error)));
        }
        {
          const std::lock_guard lock(mutex);
          num_done.fetch_add(1, std::memory_order_release);
        }
        changed.notify_all();
      }
    }
  };

  std::shared_ptr<State> state_;
  std::thread thread_;
};

WorkerGroup::WorkerGroup(const EngineConfig& config, std::vector<std::unique_ptr<Device>> devices)
    : time_limit_(config.options.collective_timeout) {
  QUIRE_CHECK(std::ssize(devices) == config.options.tensor_parallel_size, devices.size(), " devices for ",
              config.options.tensor_parallel_size, " ranks");
  if (devices.size() == 1) {
    own_worker_ = std::make_unique<Worker>(config, std::move(devices.front()));
  } else {
    make_ranks(config, std::move(devices));
  }
  first_ = own_worker_.get();
}

WorkerGroup::~WorkerGroup() {
  if (shared_ == nullptr) return;
  // Nobody's memory goes while another rank's stream still reads it.
  if (!is_hung_) {
    try {
      each("abandon", [](Worker& worker) { worker.abandon(); });
    } catch (const std::exception&) {  // it goes anyway
    }
  }
  shared_->communicators->abort("the engine is gone");
}

void WorkerGroup::make_ranks(const EngineConfig& config, std::vector<std::unique_ptr<Device>> devices) {
  shared_ = std::make_shared<Shared>();
  for (int32_t rank = 0; rank < std::ssize(devices); ++rank) shared_->configs.push_back(config_of_rank(config, rank));
  shared_->communicators = open_communicators(devices, time_limit_, config.options.disable_custom_all_reduce);
  own_worker_ =
      std::make_unique<Worker>(shared_->configs.front(), std::move(devices.front()), &shared_->communicators->rank(0));
  for (size_t rank = 1; rank < devices.size(); ++rank) {
    threads_.push_back(std::make_unique<RankThread>(shared_, static_cast<int>(rank), std::move(devices[rank])));
  }
}

void WorkerGroup::run_on_all(const char* name, VerbFunction function, const void* verb) {
  if (is_hung_) throw_hung(name);
  for (const auto& thread : threads_) thread->post(function, verb);
  std::exception_ptr own_error;
  try {
    function(verb, first());
  } catch (...) {
    own_error = std::current_exception();
    shared_->communicators->abort(str_cat("rank 0 failed: ", message_of(own_error)));
  }
  bool waited_in_vain = false;
  if (own_error != nullptr) {
    try {
      std::rethrow_exception(own_error);
    } catch (const MissingRank&) {
      waited_in_vain = true;
    } catch (...) {
    }
  }
  if (!wait_for_threads(waited_in_vain ? std::min(kGraceSeconds, time_limit_) : time_limit_)) {
    is_hung_ = true;
    shared_->communicators->abort("a rank hangs");
    throw_hung(name);
  }
  rethrow_first(name, own_error);
}

bool WorkerGroup::wait_for_threads(double time_limit) {
  const auto deadline =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(time_limit));
  bool all_came = true;
  for (const auto& thread : threads_) all_came = thread->wait_until(deadline) && all_came;
  return all_came;
}

void WorkerGroup::throw_hung(const char* name) {
  std::string ranks;
  for (size_t i = 0; i < threads_.size(); ++i) {
    if (!threads_[i]->is_idle()) ranks += str_cat(ranks.empty() ? "" : ", ", i + 1);
  }
  throw DeviceError(str_cat("rank ", ranks.empty() ? "of the group" : ranks, " of ", num_ranks(),
                            " did not come back from ", name, " within the time limit of ", time_limit_,
                            " s (collective_timeout). It is left to itself; make a new engine."));
}

// Of several errors the one that the others followed from.
void WorkerGroup::rethrow_first(const char* name, std::exception_ptr own_error) {
  std::vector<std::exception_ptr> errors = {std::move(own_error)};
  for (const auto& thread : threads_) errors.push_back(thread->error());
  const auto failed = [](const std::exception_ptr& error) { return error != nullptr; };
  if (std::ranges::none_of(errors, failed)) return;
  shared_->communicators->reset();
  auto shown = std::ranges::find_if(errors, [&](const auto& error) { return failed(error) && !is_abort(error); });
  if (shown == errors.end()) shown = std::ranges::find_if(errors, failed);
  rethrow_with(str_cat("rank ", shown - errors.begin(), " of ", num_ranks(), " failed in ", name, ": "), *shown);
}

bool WorkerGroup::usable() const {
  return !is_hung_ && first().device().usable() &&
         std::ranges::all_of(threads_, [](const auto& thread) { return thread->usable(); });
}

// ------------------------------------------------------------------------------------------------------- the verbs

void WorkerGroup::load(const Checkpoint* checkpoint, const Checkpoint* draft_checkpoint) {
  if (threads_.empty()) return first().load(checkpoint, draft_checkpoint);
  std::optional<SharedCheckpoint> shared;
  if (checkpoint != nullptr) shared.emplace(*checkpoint, num_ranks());
  each("load", [&](Worker& worker) { worker.load(shared.has_value() ? &*shared : nullptr); });
}

void WorkerGroup::upload(const Batch& batch, const SamplingBatch& sampling, std::span<const PromptRow> prompt_rows,
                         const WantedStates& wanted) {
  each("upload", [&](Worker& worker) {
    static const WantedStates kNone;
    worker.upload(batch, sampling, prompt_rows, worker.is_first_rank() ? wanted : kNone);
  });
}

void WorkerGroup::sleep(bool weights, bool kv_cache, bool keep_weights) {
  each("sleep", [&](Worker& worker) { worker.sleep(weights, kv_cache, keep_weights); });
}

void WorkerGroup::wake(bool weights, bool kv_cache) {
  std::vector<std::atomic<bool>> is_awake(static_cast<size_t>(num_ranks()));
  try {
    each("wake_up", [&](Worker& worker) {
      worker.wake(weights, kv_cache);
      is_awake[static_cast<size_t>(worker.rank())] = true;
    });
  } catch (...) {
    if (!is_hung_ && !threads_.empty()) {
      each("sleep", [&](Worker& worker) {
        if (is_awake[static_cast<size_t>(worker.rank())]) worker.sleep(weights, kv_cache, true);
      });
    }
    throw;
  }
}

void WorkerGroup::adopt_checkpoints(const std::shared_ptr<const Checkpoint>& checkpoint,
                                    const std::shared_ptr<const Checkpoint>& draft_checkpoint) {
  each("adopt_checkpoints", [&](Worker& worker) { worker.adopt_checkpoints(checkpoint, draft_checkpoint); });
}

void WorkerGroup::weights_replaced() {
  each("weights_replaced", [](Worker& worker) { worker.weights_replaced(); });
}

Worker& WorkerGroup::worker(size_t rank) { return rank == 0 ? first() : threads_.at(rank - 1)->worker(); }

WeightRanks WorkerGroup::weights() {
  WeightRanks ranks;
  for (size_t rank = 0; rank < static_cast<size_t>(num_ranks()); ++rank) {
    ranks.all.push_back(worker(rank).weight_access());
  }
  ranks.each = [this](const std::function<void(size_t)>& work) {
    each("a change of weights", [&](Worker& worker) { work(static_cast<size_t>(worker.rank())); });
  };
  return ranks;
}

void WorkerGroup::copy_blocks(std::span<const BlockCopy> copies) {
  if (copies.empty()) return;
  each("copy_blocks", [&](Worker& worker) { worker.copy_blocks(copies); });
}

// Where a verb is done on return nobody asks the other ranks for results later.
static void finish_at_once(Worker& worker) {
  if (!worker.is_first_rank() && !worker.device().is_asynchronous()) worker.fetch();
}

void WorkerGroup::run() {
  each("run", [](Worker& worker) {
    worker.run();
    finish_at_once(worker);
  });
}

void WorkerGroup::run_forward() {
  each("forward", [](Worker& worker) { worker.run_forward(); });
}

void WorkerGroup::run_sample(const SamplingBatch& sampling) {
  each("sample", [&](Worker& worker) {
    worker.run_sample(sampling);
    finish_at_once(worker);
  });
}

const SampledTokens& WorkerGroup::fetch() {
  const SampledTokens* sampled = nullptr;
  const auto fetch_from = [&](Worker& worker) {
    const SampledTokens& own = worker.fetch();
    if (worker.is_first_rank()) sampled = &own;
  };
  if (first().device().is_asynchronous()) {
    each("fetch", fetch_from);
  } else {
    fetch_from(first());
  }
  return *sampled;
}

void WorkerGroup::abandon() {
  if (is_hung_) return first().abandon();
  each("abandon", [](Worker& worker) { worker.abandon(); });
}

}  // namespace quire
