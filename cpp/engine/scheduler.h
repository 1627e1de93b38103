// Who runs in the next step, and with how many tokens. Verbs: plan, commit.
//
// Pure: no clock, no thread, no device, no tokenizer. Events (add, cancel, commit) and budgets in, a Batch out. One
// planner, policies inside it: continuous batching, chunked prefill, prefix caching, preemption by recompute. Sequences
// have one order, (priority, arrival, index), in which they are admitted and planned, and in reverse preempted; with
// equal priorities that is first come first served. docs/scheduler.md tells the policies. Engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/block_pool.h"
#include "engine/prefix_cache.h"
#include "engine/scheduler_batch.h"
#include "engine/sequence.h"
#include "model/batch.h"

namespace quire {

struct SchedulerOptions {
  int32_t num_blocks = 0;
  int32_t block_size = 16;
  int64_t max_num_batched_tokens = 2048;
  int64_t max_num_seqs = 256;
  int64_t max_model_len = 0;
  int64_t long_prefill_token_threshold = 0;  // > 0: most tokens of one sequence in a step; needs chunked prefill
  bool enable_prefix_caching = true;
  // false: a prompt is computed in one step or waits; then max_num_batched_tokens must be at least max_model_len.
  bool enable_chunked_prefill = true;
};

struct SchedulerStats {
  int64_t num_running = 0, num_waiting = 0, num_preemptions = 0;
  int64_t prefix_cache_queries = 0, prefix_cache_hits = 0;  // prompt tokens looked up, and found
};

// plan: running sequences first, oldest first: a decode takes one token of the budget, an unfinished prompt what is
// left (at most long_prefill_token_threshold). When blocks run out the newest sequence that holds any is preempted: its
// blocks are released (full ones stay as evictable prefix cache), it waits at its place in the order and recomputes.
// Then waiting sequences in order, until a budget is used up; nobody overtakes the first one that does not fit. No
// admission in a step that preempted. A plan that is never committed costs nothing: sequences advance in commit alone.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Queues a request and makes its n sequences; it is owned here until take_finished() hands it back.
  void add(std::unique_ptr<Request> request);
  // Ends all sequences of a request with FinishReason::abort and releases their blocks; false when unknown or finished.
  bool cancel(uint64_t request_id);
  bool has_work() const { return !running_.empty() || !waiting_.empty(); }

  // Plans one step into `batch`. An empty batch means that there is nothing to do.
  void plan(Batch& batch);
  // The sequences of the batch planned last, in its order, until commit() or cancel().
  std::span<const ScheduledSequence> planned() const { return planned_; }
  // The sequence of sample row `row` of the batch planned last; valid until take_finished() or the next plan(). One
  // that was cancelled since is finished().
  const Sequence& sampled_sequence(int32_t row) const;
  // Takes the sampled tokens of the batch planned last ([num_samples]): appends them, ends sequences, starts the n - 1
  // others of a request whose prompt is done, offers full blocks to the prefix cache, releases blocks.
  void commit(const Batch& batch, std::span<const int32_t> sampled);
  // Requests all of whose sequences ended, in the order they did. Empty between plan() and commit(): the batch still
  // names sequences of requests that were cancelled meanwhile.
  std::vector<std::unique_ptr<Request>> take_finished();

  // Forgets cached prefixes; false, and nothing happens, while sequences hold blocks.
  bool reset_prefix_cache();
  SchedulerStats stats() const;
  int32_t num_free_blocks() const { return pool_.num_free(); }          // neither held nor cached
  int32_t num_cached_blocks() const { return cache_.num_evictable(); }  // evictable
  // free + held + cached = total, no block held by two sequences unless shared by content, every table long enough.
  // Throws InternalError.
  void check_integrity() const;

 private:
  struct InOrder {
    bool operator()(const Sequence* a, const Sequence* b) const;
  };
  using Queue = std::set<Sequence*, InOrder>;  // nodes move between queues, so that no step allocates

  // Verbs of plan.
  bool plan_running(int64_t& budget);  // whether something was preempted
  void admit_waiting(int64_t& budget);
  int32_t admit(Sequence& sequence, int64_t budget);  // number of tokens it computes now; 0: it has to wait
  int32_t chunk(const Sequence& sequence, int64_t budget) const;
  bool grow(Sequence& sequence, int32_t num_tokens);  // blocks for so many tokens; false when they ran out
  Sequence& newest_holder() const;
  void preempt(Sequence& sequence);
  void release_blocks(Sequence& sequence) const;

  // Verbs of commit.
  void offer_full_blocks(Sequence& sequence);
  void start_siblings(const Sequence& first);
  void leave_queues(Sequence& sequence);
  void retire(uint64_t request_id);

  void check_sharing() const;
  void check_queues() const;
  int32_t blocks_for(int64_t num_tokens) const;
  void reserve(Batch& batch) const;

  const SchedulerOptions options_;
  BlockPool pool_;  // before everything that holds a BlockRef
  PrefixCache cache_;
  std::unordered_map<uint64_t, std::unique_ptr<Request>> requests_;
  Queue running_;
  Queue waiting_;
  Queue sharing_;  // those of waiting_ that hold blocks of their prompt already: siblings that never ran
  std::vector<ScheduledSequence> planned_;
  std::vector<Sequence*> sampled_;  // one a sample row
  bool step_in_flight_ = false;     // planned, not committed
  std::vector<std::unique_ptr<Request>> finished_;
  uint64_t num_added_ = 0;
  int64_t num_preemptions_ = 0;
  int64_t prefix_cache_queries_ = 0, prefix_cache_hits_ = 0;
};

}  // namespace quire
