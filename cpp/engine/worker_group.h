// The workers of an engine: one a rank, each with a thread of its own, the first with the caller's. Serves every verb.
//
// Decides: which rank does what, and what becomes of a rank that fails or hangs. A verb returns when all ranks have
// done it. What goes wrong in one is thrown with its number, once all others have given up their part; a rank that does
// not come back within the time limit is left to itself, and the group can do no more work. Does not know: requests,
// what a verb computes. With one rank there is no thread, no lock and no allocation: calls go through. Engine thread
// only.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "engine/worker.h"

namespace quire {

class WorkerGroup {
 public:
  // A device a rank, config.options.tensor_parallel_size of them. `config` is kept by reference.
  WorkerGroup(const EngineConfig& config, std::vector<std::unique_ptr<Device>> devices);
  ~WorkerGroup();
  WorkerGroup(const WorkerGroup&) = delete;
  WorkerGroup& operator=(const WorkerGroup&) = delete;

  // The verbs of a Worker, done by all ranks.
  void load(const Checkpoint* checkpoint, const Checkpoint* draft_checkpoint = nullptr);
  void upload(const Batch& batch, const SamplingBatch& sampling, std::span<const PromptRow> prompt_rows,
              const WantedStates& wanted);
  void copy_blocks(std::span<const BlockCopy> copies);
  void guess(Batch& batch, const SamplingBatch& sampling) { first().guess(batch, sampling); }  // one rank alone
  void run();
  void run_forward();
  void run_sample(const SamplingBatch& sampling);
  const SampledTokens& fetch();
  const PromptScores& prompt_scores() const { return first().prompt_scores(); }
  const StateRows& state_rows() const { return first().state_rows(); }
  void abandon();
  void sleep(bool weights, bool kv_cache, bool keep_weights);
  // All ranks or, when it throws, none.
  void wake(bool weights, bool kv_cache);
  bool has_weights() const { return first().has_weights(); }
  void adopt_checkpoints(const std::shared_ptr<const Checkpoint>& checkpoint,
                         const std::shared_ptr<const Checkpoint>& draft_checkpoint);
  void weights_replaced();
  // Those of all ranks, to be changed and read.
  WeightRanks weights();
  uint64_t weights_version() const { return first().weights_version(); }
  bool weights_incomplete() const { return first().weights_incomplete(); }
  void set_recorder(Recorder* recorder) { first().set_recorder(recorder); }  // of one rank alone

  // Calls verb(Worker&) for every rank, on its thread. `name` is for messages.
  template <typename Verb>
  void each(const char* name, const Verb& verb) {
    if (threads_.empty()) return verb(first());
    run_on_all(name, [](const void* it, Worker& worker) { (*static_cast<const Verb*>(it))(worker); }, &verb);
  }

  // The rank that samples, and has logits and all results.
  Worker& first() { return *first_; }
  const Worker& first() const { return *first_; }
  int32_t num_ranks() const { return static_cast<int32_t>(threads_.size()) + 1; }
  int64_t vocab_size() const { return first().vocab_size(); }
  // false: a device is broken, or a rank did not come back.
  bool usable() const;

 private:
  using VerbFunction = void (*)(const void*, Worker&);
  class RankThread;
  struct Shared;

  void make_ranks(const EngineConfig& config, std::vector<std::unique_ptr<Device>> devices);
  void run_on_all(const char* name, VerbFunction function, const void* verb);
  // Returns when all threads are idle; false: some are not, after the time limit.
  bool wait_for_threads(double time_limit);
  Worker& worker(size_t rank);
  [[noreturn]] void throw_hung(const char* name);
  void rethrow_first(const char* name, std::exception_ptr own_error);

  std::shared_ptr<Shared> shared_;  // what a rank that hangs may still touch
  std::unique_ptr<Worker> own_worker_;
  Worker* first_ = nullptr;
  std::vector<std::unique_ptr<RankThread>> threads_;  // of ranks from 1 on
  double time_limit_ = 0.0;
  bool is_hung_ = false;
};

}  // namespace quire
