// See harness.h.
#include "engine/harness.h"

#include <algorithm>

namespace quire::testing {
namespace {

int32_t say(const Request& request, const Script& script, int32_t position, uint64_t prefix, int32_t index) {
  const auto output_index = static_cast<size_t>(position) - request.prompt.size();
  return output_index < script.size() ? script[output_index] : next_token(prefix, index);
}

// The stop string whose first occurrence that ends past `held_back_bytes` ends first; npos when there is none.
std::pair<size_t, int32_t> first_stop(const std::string& text, const std::vector<std::string>& stops,
                                      size_t held_back) {
  std::pair<size_t, int32_t> first{std::string::npos, -1};
  for (size_t i = 0; i < stops.size(); ++i) {
    for (size_t end = held_back + 1; end <= text.size() && end < first.first; ++end) {
      if (std::string_view(text).substr(0, end).ends_with(stops[i])) first = {end, static_cast<int32_t>(i)};
    }
  }
  return first;
}

}  // namespace

ExpectedOutput expected_output(const Request& request, int32_t index, const Script& script) {
  uint64_t prefix = 0;
  for (const int32_t token : request.prompt) prefix = extend_prefix(prefix, token);
  ExpectedOutput output;
  std::string text;
  size_t held_back = 0;
  const SamplingParams& params = request.params;
  while (output.reason == FinishReason::none) {
    const auto position = static_cast<int32_t>(request.prompt.size() + output.tokens.size());
    const int32_t token = say(request, script, position, prefix, index);
    output.tokens.push_back(token);
    prefix = extend_prefix(prefix, token);
    if (request.vocabulary != nullptr) text += request.vocabulary->bytes(token);
    const auto num_output = static_cast<int32_t>(output.tokens.size());
    if (num_output < params.min_tokens) {
      held_back = text.size();
    } else if (!request.eos_token_ids.empty() && token == request.eos_token_ids[0]) {
      output.reason = FinishReason::stop;
    } else if (std::ranges::count(request.eos_token_ids, token) + std::ranges::count(params.stop_token_ids, token) >
               0) {
      output.reason = FinishReason::stop;
      output.stop_token_id = token;
    } else if (const auto [end, stop] = first_stop(text, params.stop, held_back); stop >= 0) {
      output.reason = FinishReason::stop;
      output.stop_string_index = stop;
    }
    if (output.reason == FinishReason::none && position + 1 >= request.max_total_tokens) {
      output.reason = FinishReason::length;
    }
  }
  return output;
}

Harness::Harness(const SchedulerOptions& options)
    : options_(options),
      model_(options.num_blocks, options.block_size),
      draft_model_(options.num_blocks, options.block_size),
      rows_(options.max_num_seqs, options.block_size),
      scheduler_(options) {}

void Harness::add(std::unique_ptr<Request> request, Script script) {
  live_[request->id] = request.get();
  scripts_[request->id] = std::move(script);
  scheduler_.add(std::move(request));
}

bool Harness::cancel(uint64_t request_id) {
  const bool known = scheduler_.cancel(request_id);
  if (checks_) scheduler_.check_integrity();
  check_finished();
  return known;
}

bool Harness::plan() {
  const bool alone = scheduler_.num_in_flight() == 0;
  scheduler_.plan(batch_);
  QUIRE_CHECK(!alone || batch_.empty() == !scheduler_.has_work(), "a plan of ", batch_.num_tokens(), " tokens");
  QUIRE_CHECK(batch_.num_tokens() <= options_.max_num_batched_tokens, batch_.num_tokens(), " tokens planned");
  QUIRE_CHECK(batch_.num_seqs() <= options_.max_num_seqs, batch_.num_seqs(), " sequences planned");
  QUIRE_CHECK(batch_.num_samples() <= options_.max_samples(), batch_.num_samples(), " rows of logits planned");
  if (!batch_.empty()) {
    in_flight_.push_back({.batch = batch_});
    run_model(in_flight_.back());
  }
  if (!checks_) return !batch_.empty();
  scheduler_.check_integrity();
  planned_.clear();
  if (!batch_.empty()) {
    for (const ScheduledSequence& each : scheduler_.planned()) {
      planned_.push_back({each.sequence->request->id, each.sequence->index, each.begin, each.kv_len()});
    }
  }
  preempted_.clear();
  for (const auto& [id, request] : live_) {
    for (int32_t& seen = preemptions_[id]; seen < request->num_preemptions; ++seen) preempted_.push_back(id);
  }
  return !batch_.empty();
}

void Harness::run_model(Step& step) {
  const Batch flat = options_.device_rows ? rows_.flatten(batch_) : batch_;
  const std::vector<uint64_t> prefixes = model_.run(flat);
  step.slots = flat.slot_mapping;
  if (options_.has_draft_model) run_draft_model(step);
  for (int32_t row = 0; row < flat.num_samples(); ++row) {
    const Sequence& sequence = scheduler_.sampled_sequence(row);
    const Request& request = *sequence.request;
    const int32_t token_row = flat.sample_token_rows[static_cast<size_t>(row)];
    const int32_t position = flat.positions[static_cast<size_t>(token_row)] + 1;
    if (options_.device_rows) {
      QUIRE_CHECK(rows_.num_prompt(sequence.row) == std::ssize(request.prompt), "the row does not know the prompt");
    }
    step.sampled.push_back(
        say(request, scripts_.at(request.id), position, prefixes[static_cast<size_t>(row)], sequence.index));
  }
  if (options_.device_rows) rows_.store(flat, step.sampled);
}

// What a draft model computes beside the model: the same tokens but the last draft, and the one it left out before. Its
// cache checks that it has all that lies in front of them, whoever computed it.
void Harness::run_draft_model(Step& step) {
  Batch drafting;
  drafting.block_tables = batch_.block_tables;
  drafting.block_table_stride = batch_.block_table_stride;
  drafting.block_copies = batch_.block_copies;
  drafting.query_start.push_back(0);
  for (size_t s = 0; s < batch_.kv_lens.size(); ++s) {
    const auto begin = static_cast<size_t>(batch_.query_start[s]), end = static_cast<size_t>(batch_.query_start[s + 1]);
    const int32_t first = batch_.positions[begin];
    const auto add = [&](int32_t token, int32_t position) {
      const int32_t block = batch_.block_tables[s * static_cast<size_t>(batch_.block_table_stride) +
                                                static_cast<size_t>(position / options_.block_size)];
      drafting.token_ids.push_back(token);
      drafting.positions.push_back(position);
      drafting.slot_mapping.push_back(block * options_.block_size + position % options_.block_size);
    };
    if (batch_.lagging_tokens[s] >= 0) add(batch_.lagging_tokens[s], first - 1);
    for (size_t i = begin; i < end - (batch_.num_drafts[s] > 0 ? 1 : 0); ++i) {
      add(batch_.token_ids[i], first + static_cast<int32_t>(i - begin));
    }
    drafting.query_start.push_back(drafting.num_tokens());
    drafting.kv_lens.push_back(drafting.positions.back() + 1);
  }
  draft_model_.run(drafting);
  step.draft_slots = drafting.slot_mapping;
}

void Harness::propose(Sequence& sequence) {
  const Request& request = *sequence.request;
  uint64_t prefix = 0;
  for (const int32_t token : sequence.tokens) prefix = extend_prefix(prefix, token);
  sequence.drafts.clear();
  for (int32_t i = 0; i < options_.num_speculative_tokens; ++i) {
    const int32_t position = sequence.num_tokens() + i;
    const int32_t right = say(request, scripts_.at(request.id), position, prefix, sequence.index);
    const int32_t output_index = position - static_cast<int32_t>(request.prompt.size());
    const bool is_right = is_right_(request.id, output_index, i);
    sequence.drafts.push_back(is_right ? right : (right + 1) % kVocabSize);
    prefix = extend_prefix(prefix, sequence.drafts.back());
  }
}

void Harness::commit() {
  std::vector<ScheduledSequence> ran;
  if (options_.num_speculative_tokens > 0) ran.assign(scheduler_.planned().begin(), scheduler_.planned().end());
  scheduler_.commit(in_flight_.front().batch, in_flight_.front().sampled);
  size_t row = 0;
  for (const ScheduledSequence& each : ran) {
    int32_t num_taken = 0;
    for (int32_t i = 0; i < each.num_samples(); ++i) num_taken += scheduler_.taken()[row++];
    num_drafted_ += each.num_drafts;
    num_accepted_ += std::max(0, num_taken - 1);
    if (num_taken > 0 && !each.sequence->finished()) propose(*each.sequence);
  }
  in_flight_.pop_front();
  ++num_steps_;
  if (checks_) scheduler_.check_integrity();
  check_finished();
}

void Harness::abandon() {
  scheduler_.abandon();
  for (const Step& step : in_flight_) {  // what they computed is lost
    model_.forget(step.slots);
    draft_model_.forget(step.draft_slots);
  }
  in_flight_.clear();
  if (checks_) scheduler_.check_integrity();
}

bool Harness::step() {
  while (in_flight_.size() < max_in_flight() && plan()) {
  }
  if (in_flight_.empty()) return false;
  commit();
  return true;
}

void Harness::run_until_idle() {
  while (step()) {
    QUIRE_CHECK(num_steps_ < 1'000'000, "the scheduler makes no progress");
  }
  EXPECT_TRUE(live_.empty()) << live_.size() << " requests never finished";
  EXPECT_EQ(scheduler_.num_free_blocks() + scheduler_.num_cached_blocks(), options_.num_blocks);
}

void Harness::check_finished() {
  for (std::shared_ptr<Request>& request : scheduler_.take_finished()) {
    const Script& script = scripts_.at(request->id);
    for (const auto& sequence : request->sequences) {
      const ExpectedOutput expected = expected_output(*request, sequence->index, script);
      const std::vector<int32_t> got(sequence->output().begin(), sequence->output().end());
      const std::string where = str_cat("request ", request->id, " sequence ", sequence->index);
      if (sequence->finish_reason == FinishReason::abort) {
        ASSERT_LT(got.size(), expected.tokens.size()) << where;
        EXPECT_TRUE(std::equal(got.begin(), got.end(), expected.tokens.begin())) << where;
        continue;
      }
      EXPECT_EQ(got, expected.tokens) << where;
      EXPECT_EQ(sequence->finish_reason, expected.reason) << where;
      EXPECT_EQ(sequence->stop_token_id, expected.stop_token_id) << where;
      EXPECT_EQ(sequence->stop_string_index, expected.stop_string_index) << where;
      EXPECT_TRUE(sequence->blocks.empty()) << where;
    }
    live_.erase(request->id);
    const uint64_t id = request->id;
    finished_[id] = std::move(request);
  }
}

}  // namespace quire::testing
