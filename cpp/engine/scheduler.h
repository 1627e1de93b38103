// Who runs in the next step, and with how many tokens. Verbs: plan, commit.
//
// Pure: no clock, no thread, no device, no tokenizer. Events (add, cancel, commit) and budgets in, a Batch out. Two
// steps may be planned before the first is committed: a sequence whose token nobody knows yet goes on as if it did not
// end, and what was computed too much is dropped. One
// planner, policies inside it: continuous batching, chunked prefill, prefix caching, preemption by recompute. Sequences
// have one order, (priority, arrival, index), in which they are admitted and planned, and in reverse preempted; with
// equal priorities that is first come first served. docs/scheduler.md tells the policies. Engine thread only.
#pragma once

#include <algorithm>
#include <array>
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
  // Batches are written for a device that keeps the state of running sequences in rows (params/device_rows.h), of which
  // there are max_num_seqs. Needed to plan a step while the tokens of the one before are unknown.
  bool device_rows = false;
  // Speculative decoding: most drafts of a sequence in a step, and most rows of logits (0: max_num_seqs). Not with
  // device_rows: drafts follow tokens that must be known.
  int32_t num_speculative_tokens = 0;
  int64_t max_num_samples = 0;
  bool has_draft_model = false;  // it uses the same blocks, and may be one token behind

  int64_t max_samples() const { return std::max(max_num_samples, std::min(max_num_seqs, max_num_batched_tokens)); }
};

struct SchedulerStats {
  int64_t num_running = 0, num_waiting = 0, num_preemptions = 0;
  int64_t prefix_cache_queries = 0, prefix_cache_hits = 0;  // prompt tokens looked up, and found
};

// plan: running sequences first, oldest first: a decode takes one token of the budget, an unfinished prompt what is
// left (at most long_prefill_token_threshold). When blocks run out the newest sequence that holds any is preempted: its
// blocks are released (full ones stay as evictable prefix cache), it waits at its place in the order and recomputes.
// Then waiting sequences in order, until a budget is used up; nobody overtakes the first one that does not fit. No
// admission in a step that preempted. What is left of the budgets goes to drafts (Sequence::drafts), oldest first.
// Sequences that await a token keep their blocks as long as somebody else has work; then they are preempted too, so
// that those they wait for can run. A plan that is never committed costs nothing: sequences advance in commit alone.
// What a plan will have computed is in the prefix cache from then on, so prompts that come together are computed once:
// a layer writes the keys and values of a whole step before it reads any. Blocks that a commit releases while a later
// step is in flight may be given out again at once: the device does steps in their order, so what the later step still
// writes to them is overwritten before it is read.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Queues a request and makes its n sequences; it is owned here until take_finished() hands it back.
  void add(std::unique_ptr<Request> request);
  // Ends all sequences of a request and releases their blocks; false when unknown or finished.
  bool cancel(uint64_t request_id, FinishReason reason = FinishReason::abort);
  bool has_work() const { return !running_.empty() || !waiting_.empty(); }

  // Plans one step into `batch`. An empty batch means that there is nothing to do or, with a step in flight, nothing
  // to do before its commit(): all end with the tokens in flight, or somebody would have to be preempted.
  void plan(Batch& batch);
  // Steps planned and not committed; plan() may be called while there are fewer than kMaxInFlight.
  static constexpr size_t kMaxInFlight = 2;
  size_t num_in_flight() const { return num_in_flight_; }
  // The sequences of the batch planned last, in its order, until it is committed.
  std::span<const ScheduledSequence> planned() const;
  // The sequence of sample row `row` of the batch planned last; valid until that is committed and take_finished() was
  // called. One that was cancelled since, or ended in the step before, is finished().
  const Sequence& sampled_sequence(int32_t row) const;
  // Takes the sampled tokens of the oldest batch in flight ([num_samples]): appends them, of a sequence with drafts as
  // long as the drafts are what was sampled; ends sequences, starts the
  // n - 1 others of a request whose prompt is done, offers full blocks to the prefix cache, releases blocks. Tokens of
  // sequences that had ended before are dropped.
  void commit(const Batch& batch, std::span<const int32_t> sampled);
  // Of the step committed last, one entry a sample row: whether its token counts. Not that of a sequence that had
  // ended, and not what follows a wrong draft.
  std::span<const uint8_t> taken() const { return taken_; }
  // For requests with host_chooses, with no step in flight; the sequences await a token. A fork shares the full blocks
  // of `parent` and copies the one that is not full, before the next step. Where there is no block or place for it, it
  // computes its tokens again.
  void fork(const Sequence& parent, Sequence& child);
  void append(Sequence& sequence, int32_t token);
  // It is as before it was forked.
  void drop(Sequence& sequence);
  // Forgets all steps in flight: they were not run, or not to their end. Rows are told everything again.
  void abandon();
  // Nobody runs and nobody holds a block any more: all wait, and compute their tokens again. With no step in flight.
  void preempt_all();
  std::vector<uint64_t> request_ids() const;  // ascending
  // Requests all of whose sequences ended, in the order they did. Those that a step in flight still names stay alive
  // here until it is committed.
  std::vector<std::shared_ptr<Request>> take_finished();

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

  // Of the block at the end of a fork that is not full. Both stay held until a step with the copy is committed, so that
  // a step can be done again, and no block is in two copies unless as the source of both.
  struct Copy {
    const Sequence* child = nullptr;
    BlockRef source, destination;
  };
  struct Step {
    std::vector<ScheduledSequence> planned;
    std::vector<int32_t> promised;   // blocks that are in the cache before they are computed, in the order of the step
    std::vector<Sequence*> sampled;  // one a sample row
    void clear();
  };

  // Verbs of plan.
  enum class Outcome : uint8_t { fine, preempted, must_commit };
  Outcome plan_running(Step& step, int64_t& budget);
  void admit_waiting(Step& step, int64_t& budget);
  void plan_drafts(Step& step, int64_t budget, bool may_grow);
  void promise_full_blocks(Step& step, const ScheduledSequence& scheduled);
  int32_t admit(Sequence& sequence, int64_t budget);  // number of tokens it computes now; 0: it has to wait
  int32_t chunk(const Sequence& sequence, int64_t budget) const;
  bool grow(Sequence& sequence, int32_t num_tokens);  // blocks for so many tokens; false when they ran out
  Sequence& newest_holder() const;
  void preempt(Sequence& sequence);
  void release_blocks(Sequence& sequence) const;

  // Verbs of commit.
  void drop_draft_blocks(Sequence& sequence, int32_t num_tokens) const;  // those behind so many tokens
  void take_samples(const ScheduledSequence& scheduled, std::span<const int32_t> sampled, std::span<uint8_t> taken);
  void offer_full_blocks(Sequence& sequence);
  void forget_broken_promises();  // whoever relied on one computes its tokens again
  void start_siblings(const Sequence& first);
  void leave_queues(Sequence& sequence);
  void retire(uint64_t request_id);
  void forget_copies(const Sequence& sequence);
  void give_row(Sequence& sequence);
  void take_row(Sequence& sequence);

  void check_sharing() const;
  void check_queues() const;
  int32_t blocks_for(int64_t num_tokens) const;
  void reserve(Batch& batch) const;

  const SchedulerOptions options_;
  BlockPool pool_;  // before everything that holds a BlockRef
  PrefixCache cache_;
  std::unordered_map<uint64_t, std::shared_ptr<Request>> requests_;
  Queue running_;
  Queue waiting_;
  Queue sharing_;  // those of waiting_ that hold blocks of their prompt already: siblings that never ran
  Step& newest() { return steps_[(first_step_ + num_in_flight_ - 1) % kMaxInFlight]; }
  const Step& newest() const { return steps_[(first_step_ + num_in_flight_ - 1) % kMaxInFlight]; }
  void start(Step& step);
  void end(Step& step);
  std::vector<Copy> copies_;
  std::array<Step, kMaxInFlight> steps_;  // a ring: those in flight, oldest first, then the plan being made
  size_t first_step_ = 0, num_in_flight_ = 0;
  std::vector<uint8_t> taken_;
  std::vector<std::shared_ptr<Request>> finished_;   // not yet taken
  std::vector<std::shared_ptr<Request>> lingering_;  // taken, named by a step in flight
  std::vector<int32_t> free_rows_;
  uint32_t num_rows_given_ = 0;
  uint64_t num_added_ = 0;
  int64_t num_preemptions_ = 0;
  int64_t prefix_cache_queries_ = 0, prefix_cache_hits_ = 0;
};

}  // namespace quire
