// The planner; see scheduler.h and docs/scheduler.md.
#include "engine/scheduler.h"

#include <algorithm>
#include <tuple>

#include "base/check.h"

namespace quire {

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options), pool_(options.num_blocks), cache_(pool_, options.block_size, options.enable_prefix_caching) {
  QUIRE_CHECK(options.max_num_batched_tokens > 0 && options.max_num_seqs > 0 && options.max_model_len > 0,
              "max_num_batched_tokens ", options.max_num_batched_tokens, ", max_num_seqs ", options.max_num_seqs,
              ", max_model_len ", options.max_model_len);
  QUIRE_CHECK(options.enable_chunked_prefill || options.max_num_batched_tokens >= options.max_model_len,
              "without chunked prefill a step must hold max_model_len ", options.max_model_len, " tokens, not ",
              options.max_num_batched_tokens);
  QUIRE_CHECK(options.enable_chunked_prefill || options.long_prefill_token_threshold == 0,
              "long_prefill_token_threshold ", options.long_prefill_token_threshold, " without chunked prefill");
  QUIRE_CHECK(options.num_speculative_tokens == 0 || !options.device_rows, "drafts and steps planned ahead");
  const auto num_seqs = static_cast<size_t>(std::min(options.max_num_seqs, options.max_num_batched_tokens));
  const auto num_samples = static_cast<size_t>(options.max_samples());
  const auto num_full_blocks = static_cast<size_t>(options.max_num_batched_tokens / options.block_size) + num_seqs;
  for (Step& step : steps_) {
    step.planned.reserve(num_seqs);
    step.promised.reserve(std::min(num_full_blocks, static_cast<size_t>(options.num_blocks)));
    step.sampled.reserve(num_samples);
  }
  taken_.reserve(num_samples);
  if (!options.device_rows) return;
  for (auto row = static_cast<int32_t>(options.max_num_seqs); row-- > 0;) free_rows_.push_back(row);
}

bool Scheduler::InOrder::operator()(const Sequence* a, const Sequence* b) const {
  return std::tuple(a->request->priority, a->arrival_order, a->index) <
         std::tuple(b->request->priority, b->arrival_order, b->index);
}

void Scheduler::add(std::unique_ptr<Request> request) {
  Request& added = *request;
  const auto num_prompt = static_cast<int64_t>(added.prompt.size());
  QUIRE_CHECK(num_prompt > 0 && added.max_total_tokens > num_prompt, "a prompt of ", num_prompt, " tokens, ",
              added.max_total_tokens, " in total");
  QUIRE_CHECK(added.max_total_tokens <= options_.max_model_len, added.max_total_tokens, " tokens > max_model_len ",
              options_.max_model_len);
  QUIRE_CHECK(blocks_for(added.max_total_tokens) <= pool_.num_blocks(), added.max_total_tokens, " tokens need ",
              blocks_for(added.max_total_tokens), " blocks of ", pool_.num_blocks());
  QUIRE_CHECK(added.params.stop.empty() || added.vocabulary != nullptr, "stop strings need a vocabulary");
  QUIRE_CHECK(added.params.n >= 1 && added.sequences.empty(), "n ", added.params.n,
              ", already there: ", added.sequences.size());
  const bool is_new = requests_.try_emplace(added.id, std::move(request)).second;
  QUIRE_CHECK(is_new, "request id ", added.id, " is in use");
  for (int32_t index = 0; index < added.params.n; ++index) {
    auto& sequence = added.sequences.emplace_back(std::make_unique<Sequence>());
    sequence->request = &added;
    sequence->index = index;
    sequence->arrival_order = num_added_;
  }
  ++num_added_;
  Sequence& first = *added.sequences.front();
  first.tokens = added.prompt;
  waiting_.insert(&first);
}

bool Scheduler::cancel(uint64_t request_id, FinishReason reason) {
  const auto found = requests_.find(request_id);
  if (found == requests_.end()) return false;
  for (const auto& sequence : found->second->sequences) {
    if (sequence->finished()) continue;
    sequence->finish_reason = reason;
    leave_queues(*sequence);
  }
  retire(request_id);
  return true;
}

std::vector<std::shared_ptr<Request>> Scheduler::take_finished() {
  for (const auto& request : finished_) {
    if (request->num_steps_in_flight > 0) lingering_.push_back(request);
  }
  return std::exchange(finished_, {});
}

// ---------------------------------------------------------------------------------------------------------- plan

void Scheduler::plan(Batch& batch) {
  QUIRE_CHECK(num_in_flight_ < (options_.device_rows ? kMaxInFlight : 1), num_in_flight_, " steps are in flight");
  reserve(batch);
  Step& step = steps_[(first_step_ + num_in_flight_) % kMaxInFlight];
  step.clear();
  int64_t budget = options_.max_num_batched_tokens;
  const Outcome outcome = plan_running(step, budget);
  if (outcome == Outcome::must_commit) {
    step.planned.clear();
  } else {
    for (const ScheduledSequence& each : step.planned) promise_full_blocks(step, each);
  }
  if (outcome == Outcome::fine || (outcome == Outcome::preempted && step.planned.empty())) {
    // With nothing planned nobody runs any more: then the first waiting sequence must have the pool, or all would wait.
    admit_waiting(step, budget);
  }
  if (options_.num_speculative_tokens > 0) plan_drafts(step, budget, outcome == Outcome::fine);
  fill_batch(step.planned, options_.block_size, options_.device_rows, batch);
  if (options_.has_draft_model) list_drafts(step.planned, batch);
  if (num_in_flight_ == 0 && !step.planned.empty()) {  // else the step in flight has them
    for (const Copy& copy : copies_) batch.block_copies.push_back({copy.source.id(), copy.destination.id()});
  }
  for (const int32_t index : batch.sample_seqs) {
    step.sampled.push_back(step.planned[static_cast<size_t>(index)].sequence);
  }
  if (!step.planned.empty()) start(step);
}

void Scheduler::start(Step& step) {
  ++num_in_flight_;
  for (const ScheduledSequence& each : step.planned) {
    each.sequence->num_in_flight += each.num_new_tokens;
    each.sequence->num_pending += each.samples ? 1 : 0;
    ++each.sequence->request->num_steps_in_flight;
  }
}

void Scheduler::end(Step& step) {
  for (const ScheduledSequence& each : step.planned) {
    each.sequence->num_in_flight -= each.num_new_tokens;
    each.sequence->num_pending -= each.samples ? 1 : 0;
    --each.sequence->request->num_steps_in_flight;
  }
}

Scheduler::Outcome Scheduler::plan_running(Step& step, int64_t& budget) {
  Outcome outcome = Outcome::fine;
  for (auto next = running_.begin(); next != running_.end() && budget > 0; ++next) {
    Sequence& sequence = **next;
    if (sequence.awaits_token || (sequence.num_pending > 0 && sequence.request->host_chooses)) continue;
    if (sequence.num_pending > 0 && sequence.num_known() >= sequence.request->max_total_tokens) continue;  // it ends
    const int32_t num_new = chunk(sequence, budget);
    if (num_new == 0) break;
    const int32_t begin = sequence.num_computed + sequence.num_in_flight;
    while (!grow(sequence, begin + num_new)) {
      // Who is preempted computes its tokens again, so they must be known.
      if (num_in_flight_ > 0) return Outcome::must_commit;
      Sequence& victim = newest_holder();
      preempt(victim);
      outcome = Outcome::preempted;
      if (&victim == &sequence) return outcome;  // it was the newest, so nobody is left to plan
    }
    step.planned.push_back({&sequence, begin, num_new, begin + num_new == sequence.num_known()});
    budget -= num_new;
  }
  return outcome;
}

void Scheduler::admit_waiting(Step& step, int64_t& budget) {
  while (budget > 0 && !waiting_.empty()) {
    // With no work planned or in flight all who run await a token that depends on those who wait.
    const bool is_stuck = step.planned.empty() && num_in_flight_ == 0;
    if (std::ssize(running_) >= options_.max_num_seqs) {
      if (!is_stuck) return;
      preempt(**running_.rbegin());
    }
    Sequence& sequence = **waiting_.begin();
    const int32_t num_new = admit(sequence, budget);
    if (num_new > 0) {
      const int32_t begin = sequence.num_computed;
      step.planned.push_back({&sequence, begin, num_new, begin + num_new == sequence.num_known()});
      promise_full_blocks(step, step.planned.back());
      budget -= num_new;
    } else if (is_stuck) {
      preempt(newest_holder());  // only who awaits a token, and siblings that wait, can hold what is missing
    } else {
      return;
    }
  }
}

int32_t Scheduler::admit(Sequence& sequence, int64_t budget) {
  Request& request = *sequence.request;
  const bool shares_prompt = !sequence.blocks.empty();
  const int32_t num_tokens = sequence.num_tokens();
  if (!shares_prompt) {
    const int32_t max_cached_tokens = request.max_cached_tokens(num_tokens);
    cache_.match(sequence.tokens, request.cache_salt, max_cached_tokens / options_.block_size, sequence.blocks);
    sequence.num_hashed_blocks = static_cast<int32_t>(sequence.blocks.size());
    sequence.num_computed = sequence.num_hashed_blocks * options_.block_size;
  }
  const int32_t num_new = chunk(sequence, budget);
  // Room for all its tokens, not only for this chunk: a prompt that starts and then is preempted has cost others time.
  const auto num_missing = blocks_for(num_tokens) - static_cast<int32_t>(sequence.blocks.size());
  if (num_new == 0 || num_missing > cache_.num_allocatable()) {
    if (!shares_prompt) release_blocks(sequence);
    return 0;
  }
  if (!request.scheduled) {
    request.scheduled = true;
    request.num_cached_tokens = sequence.num_computed;
    if (cache_.enabled()) prefix_cache_queries_ += num_tokens;
    prefix_cache_hits_ += sequence.num_computed;
  }
  sequence.tokens.reserve(static_cast<size_t>(request.max_total_tokens));
  sequence.blocks.reserve(static_cast<size_t>(blocks_for(request.max_total_tokens)));
  const bool grown = grow(sequence, sequence.num_computed + num_new);
  QUIRE_CHECK(grown, num_missing, " blocks were there");
  sharing_.erase(&sequence);
  running_.insert(waiting_.extract(&sequence));
  give_row(sequence);
  return num_new;
}

void Scheduler::give_row(Sequence& sequence) {
  if (!options_.device_rows) return;
  QUIRE_CHECK(sequence.row < 0 && !free_rows_.empty(), "row ", sequence.row, ", ", free_rows_.size(), " free rows");
  sequence.row = free_rows_.back();
  free_rows_.pop_back();
  sequence.row_serial = ++num_rows_given_;
  sequence.num_row_blocks = 0;
  sequence.row_has_count = sequence.row_has_last_token = false;
}

void Scheduler::take_row(Sequence& sequence) {
  if (sequence.row < 0) return;
  free_rows_.push_back(sequence.row);
  sequence.row = -1;
}

int32_t Scheduler::chunk(const Sequence& sequence, int64_t budget) const {
  const int64_t num_remaining = sequence.num_known() - sequence.num_computed - sequence.num_in_flight;
  if (!options_.enable_chunked_prefill) return static_cast<int32_t>(num_remaining <= budget ? num_remaining : 0);
  const int64_t threshold = options_.long_prefill_token_threshold;
  const int64_t limit = threshold > 0 ? std::min(budget, threshold) : budget;
  return static_cast<int32_t>(std::min(num_remaining, limit));
}

bool Scheduler::grow(Sequence& sequence, int32_t num_tokens) {
  const auto num_blocks = static_cast<size_t>(blocks_for(num_tokens));
  while (sequence.blocks.size() < num_blocks) {
    BlockRef block = cache_.allocate();
    if (!block) return false;
    sequence.blocks.push_back(std::move(block));
  }
  return true;
}

Sequence& Scheduler::newest_holder() const {
  QUIRE_CHECK(!running_.empty() || !sharing_.empty(), "no blocks, and nobody holds any");
  if (running_.empty()) return **sharing_.rbegin();
  if (sharing_.empty()) return **running_.rbegin();
  return **std::max(running_.rbegin(), sharing_.rbegin(), [](auto a, auto b) { return InOrder()(*a, *b); });
}

void Scheduler::preempt(Sequence& sequence) {
  release_blocks(sequence);
  if (sharing_.erase(&sequence) > 0) return;  // it had computed nothing of its own
  ++sequence.request->num_preemptions;
  ++num_preemptions_;
  take_row(sequence);
  forget_copies(sequence);
  if (sequence.awaits_token) {
    running_.erase(&sequence);  // it waits when it has a token
  } else {
    waiting_.insert(running_.extract(&sequence));
  }
}

void Scheduler::preempt_all() {
  QUIRE_CHECK(num_in_flight_ == 0, num_in_flight_, " steps are in flight");
  while (!running_.empty() || !sharing_.empty()) preempt(newest_holder());
}

std::vector<uint64_t> Scheduler::request_ids() const {
  std::vector<uint64_t> ids;
  for (const auto& [id, request] : requests_) ids.push_back(id);
  std::ranges::sort(ids);
  return ids;
}

void Scheduler::release_blocks(Sequence& sequence) const {
  // Last one first: a prefix must stay in the cache longer than what continues it.
  while (!sequence.blocks.empty()) sequence.blocks.pop_back();
  sequence.num_computed = 0;
  sequence.num_hashed_blocks = 0;
  sequence.num_row_blocks = 0;
  sequence.draft_lags = false;
}

// -------------------------------------------------------------------------------------------------------- commit

std::span<const ScheduledSequence> Scheduler::planned() const {
  if (num_in_flight_ == 0) return {};
  return newest().planned;
}

const Sequence& Scheduler::sampled_sequence(int32_t row) const {
  QUIRE_CHECK(num_in_flight_ > 0 && row >= 0 && row < std::ssize(newest().sampled), "row ", row);
  return *newest().sampled[static_cast<size_t>(row)];
}

void Scheduler::commit(const Batch& batch, std::span<const int32_t> sampled) {
  QUIRE_CHECK(num_in_flight_ > 0, "commit() without plan()");
  Step& step = steps_[first_step_];
  QUIRE_CHECK(batch.num_seqs() == std::ssize(step.planned) && sampled.size() == step.sampled.size(), batch.num_seqs(),
              " sequences and ", sampled.size(), " tokens for ", step.planned.size(), " planned, ", step.sampled.size(),
              " sampled");
  end(step);
  copies_.clear();
  first_step_ = (first_step_ + 1) % kMaxInFlight;
  --num_in_flight_;
  taken_.assign(sampled.size(), 0);
  size_t next_row = 0;
  for (const ScheduledSequence& each : step.planned) {
    Sequence& sequence = *each.sequence;
    const size_t row = next_row;
    next_row += static_cast<size_t>(each.num_samples());
    if (sequence.finished()) continue;  // cancelled since plan(), or ended in the step before: its token is dropped
    const bool starts = each.samples && sequence.index == 0 && sequence.num_output() == 0;
    sequence.num_computed = each.kv_len() - each.num_drafts;
    take_samples(each, sampled.subspan(row, next_row - row), std::span(taken_).subspan(row, next_row - row));
    sequence.request->num_judged = std::max(sequence.request->num_judged, sequence.num_computed);
    offer_full_blocks(sequence);
    if (!each.samples || sequence.awaits_token) continue;
    if (starts) start_siblings(sequence);
    if (!sequence.finished()) continue;
    leave_queues(sequence);
    if (sequence.request->finished()) retire(sequence.request->id);
  }
  step.clear();
  std::erase_if(lingering_, [](const auto& request) { return request->num_steps_in_flight == 0; });
}

void Scheduler::abandon() {
  for (; num_in_flight_ > 0; --num_in_flight_) {
    Step& step = newest();
    end(step);
    for (const ScheduledSequence& each : step.planned) {
      each.sequence->num_row_blocks = 0;
      each.sequence->row_has_count = each.sequence->row_has_last_token = false;
      each.sequence->row_serial = ++num_rows_given_;
      if (each.num_drafts > 0) drop_draft_blocks(*each.sequence, each.kv_len() - each.num_drafts);
    }
    for (auto id = step.promised.rbegin(); id != step.promised.rend(); ++id) cache_.retract(*id);
    step.clear();
  }
  lingering_.clear();
  forget_broken_promises();
}

void Scheduler::start_siblings(const Sequence& first) {
  const Request& request = *first.request;
  const int32_t num_shared = (static_cast<int32_t>(request.prompt.size()) - 1) / options_.block_size;
  for (size_t index = 1; index < request.sequences.size(); ++index) {
    Sequence& sibling = *request.sequences[index];
    sibling.tokens = request.prompt;
    sibling.blocks.assign(first.blocks.begin(), first.blocks.begin() + num_shared);
    sibling.num_computed = num_shared * options_.block_size;
    sibling.num_hashed_blocks = num_shared;
    waiting_.insert(&sibling);
    if (num_shared > 0) sharing_.insert(&sibling);
  }
}

void Scheduler::leave_queues(Sequence& sequence) {
  release_blocks(sequence);
  forget_copies(sequence);
  take_row(sequence);
  running_.erase(&sequence);
  waiting_.erase(&sequence);
  sharing_.erase(&sequence);
}

void Scheduler::retire(uint64_t request_id) { finished_.push_back(std::move(requests_.extract(request_id).mapped())); }

// ---------------------------------------------------------------------------------------------------------- books

bool Scheduler::reset_prefix_cache() { return running_.empty() && sharing_.empty() && cache_.clear(); }

SchedulerStats Scheduler::stats() const {
  return {.num_running = std::ssize(running_),
          .num_waiting = std::ssize(waiting_),
          .num_preemptions = num_preemptions_,
          .prefix_cache_queries = prefix_cache_queries_,
          .prefix_cache_hits = prefix_cache_hits_};
}

int32_t Scheduler::blocks_for(int64_t num_tokens) const {
  return static_cast<int32_t>((num_tokens + options_.block_size - 1) / options_.block_size);
}

void Scheduler::reserve(Batch& batch) const {
  const auto num_tokens = static_cast<size_t>(options_.max_num_batched_tokens);
  const auto num_seqs = steps_.front().planned.capacity();
  const auto num_table_entries = num_seqs * static_cast<size_t>(blocks_for(options_.max_model_len));
  batch.token_ids.reserve(num_tokens);
  batch.kv_lens.reserve(num_seqs);
  for (auto* array : {&batch.sample_token_rows, &batch.sample_seqs}) array->reserve(steps_.front().sampled.capacity());
  batch.query_start.reserve(num_seqs + 1);
  if (options_.device_rows) {
    batch.rows.reserve(num_seqs);
    batch.row_updates.reserve(num_seqs);
    batch.row_block_ids.reserve(num_table_entries);
  } else {
    for (auto* array : {&batch.positions, &batch.slot_mapping}) array->reserve(num_tokens);
    batch.block_tables.reserve(num_table_entries);
  }
}

void Scheduler::check_integrity() const {
  cache_.check_integrity();
  QUIRE_CHECK(pool_.num_free() + pool_.num_held() + cache_.num_evictable() == pool_.num_blocks(), pool_.num_free(),
              " free, ", pool_.num_held(), " held, ", cache_.num_evictable(), " cached of ", pool_.num_blocks());
  check_sharing();
  check_queues();
}

void Scheduler::check_sharing() const {
  const auto num_filled = [](const Sequence& sequence) {
    return std::min(sequence.num_computed + sequence.num_in_flight, sequence.num_tokens());
  };
  std::vector<int32_t> num_holders(static_cast<size_t>(pool_.num_blocks()), 0);
  std::vector<const Sequence*> holders(num_holders.size(), nullptr);
  for (const auto& [id, request] : requests_) {
    for (const auto& sequence : request->sequences) {
      for (size_t b = 0; b < sequence->blocks.size(); ++b) {
        const auto block = static_cast<size_t>(sequence->blocks[b].id());
        ++num_holders[block];
        const Sequence* other = std::exchange(holders[block], sequence.get());
        if (other == nullptr) continue;
        // The same place in both, behind a block that is shared too, and full of the same tokens, computed or in
        // flight.
        const auto end = static_cast<int64_t>((b + 1) * static_cast<size_t>(options_.block_size));
        const bool same = b < other->blocks.size() && other->blocks[b].id() == sequence->blocks[b].id() &&
                          (b == 0 || other->blocks[b - 1].id() == sequence->blocks[b - 1].id()) &&
                          std::min(num_filled(*other), num_filled(*sequence)) >= end &&
                          std::equal(sequence->tokens.begin() + end - options_.block_size,
                                     sequence->tokens.begin() + end, other->tokens.begin() + end - options_.block_size);
        QUIRE_CHECK(same, "block ", block, " is held by requests ", id, " and ", other->request->id);
      }
    }
  }
  for (const Copy& copy : copies_) {
    ++num_holders[static_cast<size_t>(copy.source.id())];
    ++num_holders[static_cast<size_t>(copy.destination.id())];
    const std::vector<BlockRef>& blocks = copy.child->blocks;
    const bool is_tail = !blocks.empty() && blocks.back().id() == copy.destination.id();
    QUIRE_CHECK(is_tail && holders[static_cast<size_t>(copy.destination.id())] == copy.child, "block ",
                copy.destination.id(), " is copied for sequence ", copy.child->index, ", which does not end with it");
  }
  for (size_t block = 0; block < num_holders.size(); ++block) {
    QUIRE_CHECK(num_holders[block] == pool_.use_count(static_cast<int32_t>(block)), "block ", block, " has ",
                num_holders[block], " holders, counted ", pool_.use_count(static_cast<int32_t>(block)));
  }
}

void Scheduler::check_queues() const {
  size_t num_queued = 0;
  for (const auto& [id, request] : requests_) {
    QUIRE_CHECK(!request->finished(), "request ", id, " is finished, but still here");
    for (const auto& sequence : request->sequences) {
      const bool runs = running_.contains(sequence.get()), waits = waiting_.contains(sequence.get());
      const bool shares = sharing_.contains(sequence.get());
      const bool queued = !sequence->finished() && !sequence->tokens.empty() && (!sequence->awaits_token || runs);
      QUIRE_CHECK(!sequence->awaits_token || (request->host_chooses && !waits), "request ", id, " sequence ",
                  sequence->index, " awaits a token");
      num_queued += queued ? 1 : 0;
      QUIRE_CHECK(runs + waits == (queued ? 1 : 0), "request ", id, ": runs ", runs, ", waits ", waits);
      QUIRE_CHECK((sequence->row >= 0) == (runs && options_.device_rows), "request ", id, " has row ", sequence->row);
      QUIRE_CHECK(sequence->num_row_blocks <= std::ssize(sequence->blocks), "request ", id, " has ",
                  sequence->num_row_blocks, " blocks in its row");
      QUIRE_CHECK(shares == (waits && !sequence->blocks.empty()) && (runs || waits || sequence->blocks.empty()),
                  "request ", id, " holds ", sequence->blocks.size(), " blocks: runs ", runs, ", shares ", shares);
      QUIRE_CHECK(static_cast<int64_t>(sequence->blocks.size()) * options_.block_size >= sequence->num_computed,
                  "request ", id, " has ", sequence->blocks.size(), " blocks for ", sequence->num_computed, " tokens");
    }
  }
  QUIRE_CHECK(!options_.device_rows || std::ssize(free_rows_) + std::ssize(running_) == options_.max_num_seqs,
              free_rows_.size(), " free rows");
  QUIRE_CHECK(num_queued == running_.size() + waiting_.size(), "queues name sequences of requests that are gone");
}

}  // namespace quire
