// Beam requests in the scheduler: forks, drops and tokens that come from outside, beside requests that sample.
//
// The fake model's keys are hashes of the whole prefix, so a block that was shared or copied wrongly changes what a
// beam offers. Expected is a search that computes every prefix from its first token.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "engine/beam_search.h"
#include "engine/harness.h"

namespace quire::testing {
namespace {

struct Candidates {
  std::vector<int32_t> token_ids;
  std::vector<float> logprobs;
};

Candidates candidates_after(uint64_t prefix, int32_t count) {
  Candidates candidates;
  float logprob = 0.0f;
  for (int32_t i = 0; i < count; ++i) {
    const uint64_t noise = hash_combine(prefix, static_cast<uint64_t>(i));
    candidates.token_ids.push_back(static_cast<int32_t>((prefix % 1000 + static_cast<uint64_t>(i) * 7) % kVocabSize));
    candidates.logprobs.push_back(logprob -= 0.01f + static_cast<float>(noise % 1000) / 1000.0f);
  }
  return candidates;
}

uint64_t prefix_of(std::span<const int32_t> tokens) {
  uint64_t prefix = 0;
  for (const int32_t token : tokens) prefix = extend_prefix(prefix, token);
  return prefix;
}

struct Search {
  std::vector<int32_t> prompt, stop_ids;
  BeamSearchParams params;
  int32_t max_tokens = 1;
  BeamSearch make() const { return {params, stop_ids, std::ssize(prompt), max_tokens}; }
  int32_t width() const { return BeamSearch::num_candidates(params.beam_width, stop_ids.size(), kVocabSize); }
};

std::vector<Completion> expected_results(const Search& search) {
  BeamSearch beams = search.make();
  std::map<int32_t, std::vector<int32_t>> slots = {{0, search.prompt}};
  while (!beams.finished()) {
    for (const auto& [slot, tokens] : slots) {
      const Candidates offered = candidates_after(prefix_of(tokens), search.width());
      beams.offer(slot, offered.token_ids, offered.logprobs);
    }
    const BeamMoves& moves = beams.advance();
    for (const int32_t slot : moves.dropped) slots.erase(slot);
    for (const auto& [parent, slot] : moves.forks) slots[slot] = slots.at(parent);
    for (const auto& [slot, token] : moves.appended) slots.at(slot).push_back(token);
  }
  return beams.results();
}

// The engine's part, in small.
class Driver {
 public:
  explicit Driver(const SchedulerOptions& options)
      : options_(options),
        model_(options.num_blocks, options.block_size),
        rows_(options.max_num_seqs, options.block_size),
        scheduler_(options) {}

  void add(uint64_t id, const Search& search) {
    auto request = std::make_unique<Request>();
    request->id = id;
    request->prompt = search.prompt;
    request->params.n = search.params.beam_width;
    request->max_total_tokens = std::ssize(search.prompt) + search.max_tokens;
    request->host_chooses = true;
    searches_.emplace(id, search);
    beams_.emplace(id, search.make());
    scheduler_.add(std::move(request));
  }
  void add(std::unique_ptr<Request> request) { scheduler_.add(std::move(request)); }

  bool step(bool fails = false) {
    Batch batch;
    scheduler_.plan(batch);
    scheduler_.check_integrity();
    EXPECT_EQ(batch.empty(), !scheduler_.has_work()) << "no progress";
    if (batch.empty()) return false;
    num_copies_ += std::ssize(batch.block_copies);
    num_tokens_ += batch.num_tokens();
    const Batch flat = options_.device_rows ? rows_.flatten(batch) : batch;
    const std::vector<uint64_t> prefixes = model_.run(flat);
    std::vector<const Sequence*> sequences;
    std::vector<int32_t> sampled;
    for (int32_t row = 0; row < batch.num_samples(); ++row) {
      sequences.push_back(&scheduler_.sampled_sequence(row));
      sampled.push_back(next_token(prefixes[static_cast<size_t>(row)], sequences.back()->index));
    }
    if (options_.device_rows) rows_.store(flat, sampled);
    if (fails) {
      scheduler_.abandon();
      scheduler_.check_integrity();
      return true;
    }
    scheduler_.commit(batch, sampled);
    scheduler_.check_integrity();
    advance(sequences, prefixes);
    scheduler_.check_integrity();
    check_finished();
    return true;
  }

  void run() {
    int64_t num_steps = 0;
    while (step()) ASSERT_LT(++num_steps, 100000);
    EXPECT_TRUE(searches_.empty()) << searches_.size() << " searches never finished";
    EXPECT_EQ(scheduler_.num_free_blocks() + scheduler_.num_cached_blocks(), options_.num_blocks);
  }

  void cancel(uint64_t id) {
    if (scheduler_.cancel(id)) searches_.erase(id);
    scheduler_.check_integrity();
    scheduler_.take_finished();
  }

  Scheduler& scheduler() { return scheduler_; }
  int64_t num_copies() const { return num_copies_; }
  int64_t num_tokens() const { return num_tokens_; }

 private:
  void advance(const std::vector<const Sequence*>& sequences, const std::vector<uint64_t>& prefixes) {
    for (size_t row = 0; row < sequences.size(); ++row) {
      const Request& request = *sequences[row]->request;
      if (!request.host_chooses) continue;
      const Candidates offered = candidates_after(prefixes[row], searches_.at(request.id).width());
      beams_.at(request.id).offer(sequences[row]->index, offered.token_ids, offered.logprobs);
    }
    for (const Sequence* sequence : sequences) {
      Request& request = *sequence->request;
      if (!request.host_chooses || !beams_.at(request.id).ready()) continue;
      BeamSearch& beams = beams_.at(request.id);
      const BeamMoves& moves = beams.advance();
      const auto at = [&](int32_t slot) -> Sequence& { return *request.sequences[static_cast<size_t>(slot)]; };
      for (const int32_t slot : moves.dropped) scheduler_.drop(at(slot));
      for (const auto& [parent, slot] : moves.forks) scheduler_.fork(at(parent), at(slot));
      for (const auto& [slot, token] : moves.appended) scheduler_.append(at(slot), token);
      if (beams.finished()) scheduler_.cancel(request.id, FinishReason::stop);
    }
  }

  void check_finished() {
    for (const std::shared_ptr<Request>& request : scheduler_.take_finished()) {
      if (!request->host_chooses) {
        for (const auto& sequence : request->sequences) {
          const std::vector<int32_t> got(sequence->output().begin(), sequence->output().end());
          EXPECT_EQ(got, expected_output(*request, sequence->index, {}).tokens) << "request " << request->id;
        }
        continue;
      }
      const std::vector<Completion> got = beams_.at(request->id).results();
      const std::vector<Completion> expected = expected_results(searches_.at(request->id));
      ASSERT_EQ(got.size(), expected.size());
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(got[i].token_ids, expected[i].token_ids) << "request " << request->id << " place " << i;
        EXPECT_EQ(got[i].cumulative_logprob, expected[i].cumulative_logprob);
      }
      searches_.erase(request->id);
    }
  }

  SchedulerOptions options_;
  FakeModel model_;
  FakeRows rows_;
  Scheduler scheduler_;
  std::map<uint64_t, Search> searches_;
  std::map<uint64_t, BeamSearch> beams_;
  int64_t num_copies_ = 0, num_tokens_ = 0;
};

std::vector<int32_t> text(int64_t length, int32_t author) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < length; ++i) tokens.push_back(static_cast<int32_t>((author * 131 + i * 17) % kVocabSize));
  return tokens;
}

Search search_of(int64_t num_prompt, int32_t width, int32_t max_tokens, int32_t author = 1) {
  return {
      .prompt = text(num_prompt, author), .stop_ids = {}, .params = {.beam_width = width}, .max_tokens = max_tokens};
}

SchedulerOptions options_of(int32_t num_blocks, int64_t max_num_seqs, bool device_rows) {
  return {.num_blocks = num_blocks,
          .block_size = 4,
          .max_num_batched_tokens = 64,
          .max_num_seqs = max_num_seqs,
          .max_model_len = 64,
          .enable_prefix_caching = false,
          .device_rows = device_rows};
}

class SchedulerForks : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Rows, SchedulerForks, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "DeviceRows" : "Flat"; });

TEST_P(SchedulerForks, ThePromptIsComputedOnceAndFullBlocksAreShared) {
  Driver driver(options_of(64, 8, GetParam()));
  driver.add(1, search_of(10, 4, 2));
  ASSERT_TRUE(driver.step());
  EXPECT_EQ(driver.num_tokens(), 10);
  // Two full blocks for all four; the third, with two tokens in it, each for itself.
  EXPECT_EQ(driver.scheduler().num_free_blocks(), 64 - 2 - 4);
  ASSERT_TRUE(driver.step());
  EXPECT_EQ(driver.num_copies(), 3);
  EXPECT_EQ(driver.num_tokens(), 14);
  driver.run();
}

TEST_P(SchedulerForks, NothingIsCopiedAtTheEndOfABlock) {
  Driver driver(options_of(64, 8, GetParam()));
  driver.add(1, search_of(12, 4, 2));
  driver.step();
  EXPECT_EQ(driver.scheduler().num_free_blocks(), 64 - 3);
  driver.step();
  EXPECT_EQ(driver.num_copies(), 0);
  driver.run();
}

TEST_P(SchedulerForks, BlocksForOneSequenceAreEnough) {
  // 40 tokens are 10 blocks; eight beams take turns in them.
  Driver driver(options_of(10, 8, GetParam()));
  driver.add(1, search_of(5, 8, 35));
  driver.run();
  EXPECT_GT(driver.scheduler().stats().num_preemptions, 0);
}

TEST_P(SchedulerForks, FewerPlacesThanBeamsAreEnough) {
  Driver driver(options_of(64, 3, GetParam()));
  driver.add(1, search_of(5, 8, 10));
  driver.add(2, search_of(6, 4, 10, 2));
  driver.run();
}

TEST_P(SchedulerForks, ACancelledSearchLeavesNothing) {
  for (int64_t num_steps = 0; num_steps < 6; ++num_steps) {
    Driver driver(options_of(20, 8, GetParam()));
    driver.add(1, search_of(7, 4, 10));
    driver.add(2, search_of(6, 4, 10, 2));
    for (int64_t i = 0; i < num_steps; ++i) driver.step();
    driver.cancel(1);
    driver.run();
  }
}

TEST_P(SchedulerForks, AStepThatFailedIsDoneAgainWithItsCopies) {
  Driver driver(options_of(12, 8, GetParam()));
  driver.add(1, search_of(7, 4, 12));
  driver.add(2, search_of(6, 3, 12, 2));
  int64_t num_steps = 0;
  while (driver.step(++num_steps % 2 == 0)) ASSERT_LT(num_steps, 10000);
  driver.run();
}

TEST_P(SchedulerForks, WrongCallsAreFound) {
  Scheduler scheduler(options_of(20, 8, GetParam()));
  auto request = std::make_unique<Request>();
  request->prompt = text(5, 1);
  request->params.n = 2;
  request->max_total_tokens = 8;
  request->host_chooses = true;
  Request& added = *request;
  scheduler.add(std::move(request));
  EXPECT_THROW(scheduler.append(*added.sequences[0], 1), InternalError);  // its prompt is not computed
  EXPECT_THROW(scheduler.fork(*added.sequences[0], *added.sequences[1]), InternalError);
  EXPECT_THROW(scheduler.drop(*added.sequences[1]), InternalError);
  Batch batch;
  scheduler.plan(batch);
  scheduler.commit(batch, std::vector<int32_t>{7});
  EXPECT_EQ(added.sequences[0]->num_tokens(), 5);  // what was sampled is not appended
  EXPECT_THROW(scheduler.fork(*added.sequences[0], *added.sequences[0]), InternalError);
  scheduler.append(*added.sequences[0], 9);
  EXPECT_THROW(scheduler.append(*added.sequences[0], 9), InternalError);
  scheduler.check_integrity();
  scheduler.cancel(0);
}

// Random searches and requests, pools, places and budgets.
TEST_P(SchedulerForks, RandomStories) {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(str_cat("seed ", seed));
    std::mt19937 generator(seed);
    const auto roll = [&](int64_t low, int64_t high) { return std::uniform_int_distribution(low, high)(generator); };
    SchedulerOptions options;
    options.block_size = static_cast<int32_t>(roll(1, 6));
    options.max_model_len = 40;
    const auto one_sequence = static_cast<int32_t>((40 + options.block_size - 1) / options.block_size);
    options.num_blocks = one_sequence + static_cast<int32_t>(roll(0, 3) * roll(0, one_sequence));
    options.max_num_seqs = roll(1, 12);
    options.max_num_batched_tokens = roll(1, 50);
    options.enable_prefix_caching = roll(0, 1) == 0;
    options.device_rows = GetParam();
    Driver driver(options);
    const int64_t num_requests = roll(1, 6);
    for (int64_t id = 0; id < num_requests; ++id) {
      const int64_t num_prompt = roll(1, 20);
      const auto author = static_cast<int32_t>(roll(1, 2));
      if (roll(0, 2) > 0) {
        Search search =
            search_of(num_prompt, static_cast<int32_t>(roll(1, 8)), static_cast<int32_t>(roll(1, 20)), author);
        for (int64_t i = roll(0, 2); i > 0; --i) {
          for (int32_t token = 0; token < 100; ++token) search.stop_ids.push_back(static_cast<int32_t>(roll(0, 999)));
        }
        driver.add(static_cast<uint64_t>(id), search);
      } else {
        auto request = std::make_unique<Request>();
        request->id = static_cast<uint64_t>(id);
        request->prompt = text(num_prompt, author);
        request->params.n = static_cast<int32_t>(roll(1, 3));
        request->max_total_tokens = num_prompt + roll(1, 20);
        request->priority = static_cast<int32_t>(roll(-1, 1));
        driver.add(std::move(request));
      }
      for (int64_t i = roll(0, 4); i > 0; --i) driver.step(roll(0, 9) == 0);
      if (roll(0, 5) == 0) driver.cancel(static_cast<uint64_t>(roll(0, id)));
    }
    driver.run();
    if (::testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace quire::testing
