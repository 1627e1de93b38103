// Who runs in the next step, and with how many tokens. Verbs: plan, commit.
//
// Pure: no clock, no thread, no device, no tokenizer. Events (add, cancel, commit) and budgets in, a Batch out. One planner, policies inside it:
// continuous batching, chunked prefill, prefix caching, preemption by recompute, first come first served. Engine thread only.
//
// plan: running sequences first, oldest first: a decode takes one token of the budget, an unfinished prompt what is left
// (at most long_prefill_token_threshold). When blocks run out the newest running sequence is preempted: its blocks are released (full ones stay
// as evictable prefix cache), it waits at the front and recomputes. Then waiting sequences in order, until a budget is used up; nobody overtakes the first one that does not fit. No admission in a step that preempted.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/block_pool.h"
#include "engine/prefix_cache.h"
#include "engine/sequence.h"
#include "model/batch.h"

namespace quire {

struct SchedulerOptions {
  int32_t num_blocks = 0;
  int32_t block_size = 16;
  int64_t max_num_batched_tokens = 2048;
  int64_t max_num_seqs = 256;
  int64_t max_model_len = 0;
  int64_t long_prefill_token_threshold = 0;  // 0: no limit
  bool enable_prefix_caching = true;
  bool enable_chunked_prefill = true;  // false: a prompt is computed in one step or waits (one longer than the budget is computed alone)
};

struct SchedulerStats {
  int64_t num_running = 0, num_waiting = 0, num_preemptions = 0;
  int64_t prefix_cache_queries = 0, prefix_cache_hits = 0;  // tokens
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);
  ~Scheduler();

  // Queues a request; it is owned here until take_finished() hands it back.
  void add(std::unique_ptr<Request> request);
  // Ends all sequences of a request with FinishReason::abort; false when unknown.
  bool cancel(uint64_t request_id);
  bool has_work() const;

  // Plans one step into `batch`. An empty batch means that there is nothing to do.
  void plan(Batch& batch);
  // The sequence of sample row `row` of the batch planned last (valid until commit returns).
  const Sequence& sampled_sequence(int32_t row) const;
  // Takes the sampled tokens of the batch planned last ([num_samples]): appends them, ends sequences, forks the n - 1 others of a request
  // whose prompt is done, offers full blocks to the prefix cache, releases blocks.
  void commit(const Batch& batch, std::span<const int32_t> sampled);
  // Requests all of whose sequences ended, in the order they did.
  std::vector<std::unique_ptr<Request>> take_finished();

  // Forgets cached prefixes; false, and nothing happens, while sequences run.
  bool reset_prefix_cache();
  SchedulerStats stats() const;
  int32_t num_free_blocks() const;    // neither held nor cached
  int32_t num_cached_blocks() const;  // evictable
  // free + held + cached = total, no block held by two sequences unless shared by content, every table long enough. Throws InternalError.
  void check_integrity() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace quire
