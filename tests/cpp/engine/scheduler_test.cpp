// What scenarios cannot say: the arrays of a batch, refusals, abandoned plans, a cache that is emptied, allocations and
// many waiting requests.
#include "engine/scheduler.h"

#include "engine/harness.h"
#include "support/allocation_counter.h"

namespace quire::testing {
namespace {

std::unique_ptr<Request> make_request(uint64_t id, int32_t num_prompt, int32_t max_tokens) {
  auto request = std::make_unique<Request>();
  request->id = id;
  for (int32_t i = 0; i < num_prompt; ++i) request->prompt.push_back(static_cast<int32_t>(id) * 100 + i);
  request->max_total_tokens = num_prompt + max_tokens;
  return request;
}

using Ints = std::vector<int32_t>;

TEST(FillBatch, LaysTokensOverBlocks) {
  BlockPool pool(10);
  Request request;
  request.prompt = {50, 51, 52, 53, 54};
  Sequence prefill, decode;
  prefill.request = decode.request = &request;
  prefill.tokens = request.prompt;
  decode.tokens = {60, 61, 62};
  decode.num_computed = 2;
  decode.blocks.push_back(pool.allocate());  // block 0
  {
    const BlockRef skipped = pool.allocate();
  }  // 1 is free again
  for (int i = 0; i < 3; ++i) prefill.blocks.push_back(pool.allocate());  // 1, 2, 3
  decode.blocks.push_back(pool.allocate());                               // 4
  const std::vector<ScheduledSequence> scheduled = {{&prefill, 0, 3, false}, {&decode, 2, 1, true}};
  Batch batch;
  batch.token_ids = {9, 9, 9};  // of the step before
  fill_batch(scheduled, 2, false, batch);
  EXPECT_EQ(batch.token_ids, (Ints{50, 51, 52, 62}));
  EXPECT_EQ(batch.positions, (Ints{0, 1, 2, 2}));
  EXPECT_EQ(batch.slot_mapping, (Ints{2, 3, 4, 8}));
  EXPECT_EQ(batch.query_start, (Ints{0, 3, 4}));
  EXPECT_EQ(batch.kv_lens, (Ints{3, 3}));
  EXPECT_EQ(batch.block_table_stride, 3);
  EXPECT_EQ(batch.block_tables, (Ints{1, 2, 3, 0, 4, -1}));
  EXPECT_EQ(batch.sample_token_rows, (Ints{3}));
  EXPECT_EQ(batch.sample_seqs, (Ints{1}));
  fill_batch({}, 2, false, batch);
  EXPECT_TRUE(batch.empty());
  EXPECT_EQ(batch.num_seqs(), 0);
}

TEST(Scheduler, RefusesWhatItCouldNeverFinish) {
  const SchedulerOptions options{.num_blocks = 4, .block_size = 4, .max_model_len = 20};
  Scheduler scheduler(options);
  EXPECT_THROW(scheduler.add(make_request(1, 10, 7)), InternalError) << "five blocks";
  EXPECT_THROW(scheduler.add(make_request(1, 10, 0)), InternalError);
  EXPECT_THROW(scheduler.add(make_request(1, 0, 3)), InternalError);
  auto stopping = make_request(1, 2, 3);
  stopping->params.stop = {"x"};
  EXPECT_THROW(scheduler.add(std::move(stopping)), InternalError) << "no vocabulary";
  scheduler.add(make_request(2, 10, 6));
  EXPECT_THROW(scheduler.add(make_request(2, 3, 3)), InternalError) << "the id is in use";
  scheduler.check_integrity();
  EXPECT_FALSE(scheduler.cancel(3));
  EXPECT_TRUE(scheduler.cancel(2));
  EXPECT_FALSE(scheduler.cancel(2));

  SchedulerOptions unchunked = options;
  unchunked.enable_chunked_prefill = false;
  unchunked.max_num_batched_tokens = 19;
  EXPECT_THROW(Scheduler{unchunked}, InternalError);
  EXPECT_THROW(scheduler.commit({}, {}), InternalError) << "nothing was planned";
}

// A step that failed on the device leaves the scheduler where it was.
TEST(Scheduler, AnAbandonedPlanIsMadeAgain) {
  Harness harness({.num_blocks = 8, .block_size = 4, .max_num_batched_tokens = 6, .max_model_len = 32});
  harness.add(make_request(1, 10, 3));
  harness.add(make_request(2, 5, 3));
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(harness.plan());
    const auto planned = harness.planned().size();
    const Ints slots = harness.batch().slot_mapping;
    harness.abandon();
    ASSERT_TRUE(harness.plan());
    EXPECT_EQ(harness.planned().size(), planned);
    EXPECT_EQ(harness.batch().slot_mapping, slots);
    harness.commit();
  }
  harness.run_until_idle();
}

// Whoever was to have what an abandoned step would have computed gives it up, and the next plan is the same again; a
// sequence that had computed something of its own keeps it.
TEST(Scheduler, AnAbandonedPlanBreaksItsPromises) {
  Harness harness({.num_blocks = 32, .block_size = 4, .max_num_batched_tokens = 14, .max_model_len = 64});
  for (uint64_t id = 1; id <= 3; ++id) {
    auto request = make_request(id, 26, 3);
    request->prompt = make_request(1, 26, 3)->prompt;
    harness.add(std::move(request));
  }
  harness.step();  // the first 14 tokens of the first: two of a block that the next step promises
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(harness.plan());
    const auto planned = harness.planned();
    ASSERT_EQ(planned.size(), 2u);
    EXPECT_EQ(planned[0].begin, 14);
    EXPECT_EQ(planned[1].begin, 24);
    harness.abandon();
    EXPECT_EQ(harness.scheduler().stats().num_running, 1);
  }
  harness.run_until_idle();
  for (const auto& [id, request] : harness.finished()) EXPECT_EQ(request->num_preemptions, id == 2 ? 3 : 0) << id;
}

TEST(Scheduler, KeepsWhatAStepInFlightNames) {
  Scheduler scheduler({.num_blocks = 8, .block_size = 4, .max_model_len = 32});
  scheduler.add(make_request(1, 4, 3));
  Batch batch;
  scheduler.plan(batch);
  const Sequence& sequence = scheduler.sampled_sequence(0);
  scheduler.cancel(1);
  EXPECT_EQ(scheduler.take_finished().size(), 1u);  // and dropped
  EXPECT_EQ(sequence.finish_reason, FinishReason::abort);
  scheduler.commit(batch, Ints{5});
  EXPECT_TRUE(scheduler.take_finished().empty());
}

SchedulerOptions ahead_options() {
  return {.num_blocks = 8, .block_size = 4, .max_num_seqs = 4, .max_model_len = 32, .device_rows = true};
}

// The second step computes a token that only the device knows; nobody computes past max_tokens.
TEST(SchedulerAhead, PlansAStepWhileTheTokensOfTheOneBeforeAreUnknown) {
  Scheduler scheduler(ahead_options());
  scheduler.add(make_request(1, 5, 2));
  scheduler.add(make_request(2, 3, 3));
  Batch first, second, third;
  scheduler.plan(first);
  EXPECT_EQ(first.num_tokens(), 8);
  EXPECT_EQ(first.row_updates.size(), 2u);
  EXPECT_FALSE(first.feeds_itself());
  scheduler.plan(second);
  EXPECT_EQ(second.token_ids, (Ints{-1, -1}));
  EXPECT_EQ(second.kv_lens, (Ints{6, 4}));
  EXPECT_EQ(second.rows, first.rows);
  EXPECT_TRUE(second.row_updates.empty());
  EXPECT_TRUE(second.feeds_itself());
  EXPECT_THROW(scheduler.plan(third), InternalError) << "two are in flight";
  scheduler.commit(first, Ints{7, 8});
  scheduler.plan(third);
  EXPECT_EQ(third.kv_lens, (Ints{5})) << "request 1 ends with what is in flight";
  EXPECT_EQ(third.row_block_ids.size(), 1u) << "request 2 begins its second block";
  scheduler.commit(second, Ints{9, 10});
  EXPECT_EQ(scheduler.take_finished().size(), 1u);
  scheduler.commit(third, Ints{11});
  const auto finished = scheduler.take_finished();
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_EQ(finished[0]->sequences[0]->tokens, (Ints{200, 201, 202, 8, 10, 11}));
  scheduler.check_integrity();
}

// A stop is seen one step late: what the step in flight computed of it is dropped, and its row serves another.
TEST(SchedulerAhead, DropsWhatWasComputedPastAStop) {
  Scheduler scheduler(ahead_options());
  auto stopping = make_request(1, 5, 9);
  stopping->eos_token_ids = {77};
  scheduler.add(std::move(stopping));
  Batch first, second, third;
  scheduler.plan(first);
  scheduler.plan(second);
  scheduler.commit(first, Ints{77});
  const auto finished = scheduler.take_finished();
  ASSERT_EQ(finished.size(), 1u) << "it is not held back by the step in flight";
  EXPECT_EQ(scheduler.num_cached_blocks(), 1);
  scheduler.add(make_request(2, 5, 2));
  scheduler.plan(third);
  EXPECT_EQ(third.rows, second.rows);
  scheduler.commit(second, Ints{5});
  EXPECT_EQ(finished[0]->sequences[0]->num_output(), 1);
  EXPECT_EQ(finished[0]->sequences[0]->finish_reason, FinishReason::stop);
  scheduler.commit(third, Ints{6});
  scheduler.check_integrity();
}

// Who would be preempted has a token that nobody knows; the plan waits for it.
TEST(SchedulerAhead, PreemptsNobodyWhileAStepIsInFlight) {
  SchedulerOptions options = ahead_options();
  options.num_blocks = 4;
  options.max_model_len = 16;
  Scheduler scheduler(options);
  scheduler.add(make_request(1, 7, 6));
  scheduler.add(make_request(2, 7, 4));
  Batch first, second, third;
  scheduler.plan(first);
  scheduler.plan(second);
  EXPECT_EQ(second.kv_lens, (Ints{8, 8}));
  scheduler.commit(first, Ints{1, 2});
  scheduler.plan(third);
  EXPECT_TRUE(third.empty());
  EXPECT_EQ(scheduler.num_in_flight(), 1u);
  EXPECT_EQ(scheduler.stats().num_preemptions, 0);
  scheduler.commit(second, Ints{3, 4});
  scheduler.plan(third);
  EXPECT_EQ(third.kv_lens, (Ints{9}));
  EXPECT_EQ(scheduler.stats().num_preemptions, 1);
}

TEST(Scheduler, ForgetsPrefixesOnlyWhenNobodyHoldsBlocks) {
  Harness harness({.num_blocks = 8, .block_size = 4, .max_model_len = 32});
  harness.add(make_request(1, 9, 3));
  harness.step();
  EXPECT_FALSE(harness.scheduler().reset_prefix_cache());
  harness.run_until_idle();
  EXPECT_EQ(harness.scheduler().num_cached_blocks(), 2);
  EXPECT_TRUE(harness.scheduler().reset_prefix_cache());
  EXPECT_EQ(harness.scheduler().num_free_blocks(), 8);

  auto request = make_request(2, 9, 1);
  request->params.n = 2;
  harness.add(std::move(request));
  harness.step();  // the first sequence is done, the second waits and shares its prompt
  EXPECT_EQ(harness.scheduler().stats().num_running, 0);
  EXPECT_FALSE(harness.scheduler().reset_prefix_cache());
  harness.run_until_idle();
}

class SchedulerSteps : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(DeviceRows, SchedulerSteps, ::testing::Bool());

// As when an engine goes to sleep: nobody holds a block afterwards, and what was computed is computed again. The
// harness compares what comes out.
TEST_P(SchedulerSteps, PreemptAllEmptiesTheCache) {
  SchedulerOptions options{.num_blocks = 64, .block_size = 4, .max_num_batched_tokens = 16, .max_num_seqs = 4};
  options.max_model_len = 64;
  options.device_rows = GetParam();
  Harness harness(options);
  for (uint64_t id = 1; id <= 6; ++id) {
    auto request = make_request(id, 5 + 4 * static_cast<int32_t>(id), 9);
    request->params.n = id % 2 == 0 ? 3 : 1;
    harness.add(std::move(request));
  }
  EXPECT_EQ(harness.scheduler().request_ids(), (std::vector<uint64_t>{1, 2, 3, 4, 5, 6}));
  for (int round = 0; round < 8; ++round) {
    for (int i = 0; i < 3; ++i) harness.step();
    harness.abandon();
    harness.scheduler().preempt_all();
    EXPECT_TRUE(harness.scheduler().reset_prefix_cache());
    EXPECT_EQ(harness.scheduler().num_free_blocks(), options.num_blocks);
    EXPECT_EQ(harness.scheduler().stats().num_running, 0);
    harness.scheduler().check_integrity();
  }
  EXPECT_GT(harness.scheduler().stats().num_preemptions, 0);
  harness.run_until_idle();
  EXPECT_EQ(harness.finished().size(), 6u);
}

// 1,000 decode steps of 16 sequences, twice as many as the pool holds, so that some are preempted and come back.
TEST_P(SchedulerSteps, AllocateNothing) {
  Scheduler scheduler({.num_blocks = 600,
                       .block_size = 8,
                       .max_num_batched_tokens = 256,
                       .max_model_len = 4096,
                       .device_rows = GetParam()});
  auto vocabulary = std::make_shared<Vocabulary>();
  vocabulary->token_bytes = {"some text", "another text"};
  for (uint64_t id = 0; id < 16; ++id) {
    auto request = make_request(id, 64, 1500);
    request->params.stop = {"never said, and longer than what is kept inside of a string object"};
    request->vocabulary = vocabulary;
    scheduler.add(std::move(request));
  }
  Batch batch;
  Ints sampled;
  sampled.reserve(16);
  const auto step = [&] {
    scheduler.plan(batch);
    sampled.assign(static_cast<size_t>(batch.num_samples()), 1);
    scheduler.commit(batch, sampled);
  };
  for (int i = 0; i < 20; ++i) step();
  const int64_t before = num_allocations();
  for (int i = 0; i < 1000; ++i) step();
  EXPECT_EQ(num_allocations() - before, 0);
  EXPECT_GT(scheduler.stats().num_preemptions, 10);
  EXPECT_GT(before, 100) << "the counter does not count";
}

TEST(Scheduler, TenThousandWait) {
  Harness harness({.num_blocks = 64, .block_size = 4, .max_num_seqs = 16, .max_model_len = 32});
  harness.set_checks(false);
  for (uint64_t id = 0; id < 10'000; ++id) harness.add(make_request(id, 1 + static_cast<int32_t>(id % 9), 3));
  for (int i = 0; i < 10; ++i) harness.step();
  for (uint64_t id = 1; id < 10'000; id += 2) harness.cancel(id);
  harness.run_until_idle();
  EXPECT_EQ(harness.finished().size(), 10'000u);
  harness.scheduler().check_integrity();
}

}  // namespace
}  // namespace quire::testing
