// Random arrivals, lengths, n, stops, cancels, pools and budgets: 10^5 steps in which nothing may go wrong.
//
// The harness checks after every step that no block is lost or held twice and that the model reads the right keys and
// values, and every output against a loop over its prompt. Here the same story is told to schedulers of very different
// means, which must agree. A failure names the seed of its story; QUIRE_PROPERTY_STEPS sets another number of steps.
#include <algorithm>
#include <cstdlib>
#include <random>

#include "engine/harness.h"

namespace quire::testing {
namespace {

struct Arrival {
  int64_t step = 0;
  Request request;  // without sequences
  int64_t cancel_step = -1;
  bool cancel_in_flight = false;  // between plan and commit
};

struct Story {
  int32_t block_size = 1;
  int64_t max_model_len = 0;
  std::vector<Arrival> arrivals;
};

class Dice {
 public:
  explicit Dice(uint64_t seed) : generator_(seed) {}
  int64_t roll(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator_); }
  bool one_in(int64_t n) { return roll(1, n) == 1; }

 private:
  std::mt19937_64 generator_;
};

Request make_request(Dice& dice, uint64_t id, int64_t max_model_len) {
  Request request;
  request.id = id;
  // A few texts, so that prompts share prefixes of all lengths; sometimes they part in the middle.
  const int64_t num_prompt = dice.roll(1, max_model_len - 1);
  const int64_t parting = dice.one_in(2) ? num_prompt : dice.roll(0, num_prompt);
  const int64_t text = dice.roll(0, 2);
  for (int64_t i = 0; i < num_prompt; ++i) {
    const int64_t author = i < parting ? text : 100 + static_cast<int64_t>(id);
    request.prompt.push_back(
        static_cast<int32_t>(hash_combine(static_cast<uint64_t>(author), static_cast<uint64_t>(i)) % kVocabSize));
  }
  request.max_total_tokens = std::min(max_model_len, num_prompt + (dice.one_in(3) ? max_model_len : dice.roll(1, 12)));
  if (dice.one_in(4)) request.params.n = static_cast<int32_t>(dice.roll(2, 5));
  if (dice.one_in(4)) request.priority = static_cast<int32_t>(dice.roll(-1, 1));
  if (dice.one_in(8)) request.cache_salt = 1;
  if (dice.one_in(4)) {
    for (int i = 0; i < 40; ++i) request.eos_token_ids.push_back(static_cast<int32_t>(dice.roll(0, kVocabSize - 1)));
  }
  if (dice.one_in(5)) request.params.prompt_logprobs = 2;
  if (dice.one_in(4)) request.params.min_tokens = static_cast<int32_t>(dice.roll(0, 8));
  return request;
}

Story make_story(uint64_t seed) {
  Dice dice(seed);
  Story story;
  story.block_size = static_cast<int32_t>(dice.one_in(5) ? 1 : dice.roll(2, 8));
  story.max_model_len = dice.roll(2, 64);
  const int64_t num_requests = dice.roll(1, 40);
  const int64_t busy_steps = dice.one_in(3) ? 0 : dice.roll(1, 100);
  for (int64_t i = 0; i < num_requests; ++i) {
    Arrival arrival;
    arrival.step = dice.roll(0, busy_steps);
    arrival.request = make_request(dice, static_cast<uint64_t>(i), story.max_model_len);
    if (dice.one_in(6)) {
      arrival.cancel_step = arrival.step + dice.roll(0, 30);
      arrival.cancel_in_flight = dice.one_in(2);
    }
    story.arrivals.push_back(std::move(arrival));
  }
  std::ranges::stable_sort(story.arrivals, {}, &Arrival::step);
  return story;
}

int32_t blocks_needed(const Request& request, int32_t block_size) {
  return static_cast<int32_t>((request.max_total_tokens + block_size - 1) / block_size);
}

// Room for everything at once, and steps of any size.
SchedulerOptions rich_options(const Story& story) {
  SchedulerOptions options;
  options.block_size = story.block_size;
  options.max_model_len = story.max_model_len;
  options.max_num_seqs = 1000;
  options.max_num_batched_tokens = 100'000;
  for (const Arrival& each : story.arrivals) {
    options.num_blocks += each.request.params.n * blocks_needed(each.request, story.block_size);
  }
  return options;
}

// A tenth of the blocks, or what the longest request needs alone; every other means by lot.
SchedulerOptions poor_options(const Story& story, Dice& dice) {
  SchedulerOptions options = rich_options(story);
  options.num_blocks /= 10;
  for (const Arrival& each : story.arrivals) {
    options.num_blocks = std::max(options.num_blocks, blocks_needed(each.request, story.block_size));
  }
  options.max_num_seqs = dice.one_in(2) ? 1000 : dice.roll(1, 8);
  options.enable_prefix_caching = !dice.one_in(3);
  options.enable_chunked_prefill = !dice.one_in(4);
  if (options.enable_chunked_prefill) {
    options.max_num_batched_tokens = dice.one_in(6) ? dice.roll(1, 3) : dice.roll(4, 100);
    if (dice.one_in(3)) options.long_prefill_token_threshold = dice.roll(1, 20);
  } else {
    options.max_num_batched_tokens = options.max_model_len + dice.roll(0, 64);
  }
  return options;
}

struct Ending {
  std::vector<std::vector<int32_t>> outputs;
  int64_t num_steps = 0;
  SchedulerStats stats;
  int64_t num_cancelled = 0;
  int64_t num_drafted = 0, num_accepted = 0;
};

std::unique_ptr<Request> copy_of(const Request& request) {
  auto copy = std::make_unique<Request>();
  copy->id = request.id;
  copy->prompt = request.prompt;
  copy->params = request.params;
  copy->eos_token_ids = request.eos_token_ids;
  copy->max_total_tokens = request.max_total_tokens;
  copy->cache_salt = request.cache_salt;
  copy->priority = request.priority;
  return copy;
}

// `cancels`: off to compare outputs, because what a cancelled request still says depends on the pace.
// `abandons`: some steps are lost with what they computed.
Ending tell(const Story& story, const SchedulerOptions& options, bool cancels, bool abandons = false) {
  Harness harness(options);
  // Half of the drafts are right, by lot.
  harness.set_drafter([](uint64_t id, int32_t output_index, int32_t i) {
    return hash_combine(id, static_cast<uint64_t>(output_index * 64 + i)) % 2 == 0;
  });
  Ending ending;
  size_t next = 0;
  const auto cancel_due = [&](int64_t step, bool in_flight) {
    for (size_t i = 0; cancels && i < next; ++i) {
      const Arrival& each = story.arrivals[i];
      if (each.cancel_step == step && each.cancel_in_flight == in_flight && harness.cancel(each.request.id)) {
        ++ending.num_cancelled;
      }
    }
  };
  for (int64_t step = 0; step < 1'000'000; ++step) {
    for (; next < story.arrivals.size() && story.arrivals[next].step <= step; ++next) {
      harness.add(copy_of(story.arrivals[next].request));
    }
    cancel_due(step, false);
    const bool planned = harness.plan();
    const size_t num_in_flight = harness.scheduler().num_in_flight();
    if (planned) cancel_due(step, true);
    if (abandons && step % 7 == 3) {
      harness.abandon();
    } else if (num_in_flight == harness.max_in_flight() || (num_in_flight > 0 && (!planned || step % 5 == 0))) {
      harness.commit();
    } else if (!planned && num_in_flight == 0 && next == story.arrivals.size()) {
      break;
    }
  }
  harness.run_until_idle();
  for (const auto& [id, request] : harness.finished()) {
    for (const auto& sequence : request->sequences) {
      ending.outputs.emplace_back(sequence->output().begin(), sequence->output().end());
    }
  }
  EXPECT_EQ(harness.finished().size(), story.arrivals.size()) << "some request never finished";
  ending.num_steps = harness.num_steps();
  ending.stats = harness.scheduler().stats();
  ending.num_drafted = harness.num_drafted();
  ending.num_accepted = harness.num_accepted();
  return ending;
}

TEST(SchedulerProperty, OutputsDependOnRequestsAlone) {
  const char* wanted = std::getenv("QUIRE_PROPERTY_STEPS");
  const int64_t wanted_steps = wanted != nullptr ? std::atoll(wanted) : 100'000;
  Ending total;
  for (uint64_t seed = 0; total.num_steps < wanted_steps && !HasFailure(); ++seed) {
    SCOPED_TRACE(str_cat("seed ", seed));
    const Story story = make_story(seed);
    Dice dice(seed + 1'000'000'000);
    const SchedulerOptions poor = poor_options(story, dice);
    const Ending rich_ending = tell(story, rich_options(story), false);
    const Ending poor_ending = tell(story, poor, false);
    EXPECT_EQ(poor_ending.outputs, rich_ending.outputs);
    EXPECT_EQ(rich_ending.stats.num_preemptions, 0);
    const Ending cancelled_ending = tell(story, poor, true);
    SchedulerOptions ahead = poor;
    ahead.device_rows = true;
    const Ending ahead_ending = tell(story, ahead, false, dice.one_in(3));
    EXPECT_EQ(ahead_ending.outputs, rich_ending.outputs) << "planned one step ahead";
    const Ending ahead_cancelled_ending = tell(story, ahead, true);
    SchedulerOptions guessing = poor;
    guessing.num_speculative_tokens = static_cast<int32_t>(dice.roll(1, 6));
    guessing.max_num_samples = dice.one_in(3) ? 0 : guessing.max_num_seqs * 4;
    guessing.has_draft_model = dice.one_in(2);
    const Ending guessing_ending = tell(story, guessing, false, dice.one_in(3));
    EXPECT_EQ(guessing_ending.outputs, rich_ending.outputs) << "with drafts";
    const Ending guessing_cancelled_ending = tell(story, guessing, true);
    for (const Ending* each : {&rich_ending, &poor_ending, &cancelled_ending, &ahead_ending, &ahead_cancelled_ending,
                               &guessing_ending, &guessing_cancelled_ending}) {
      total.num_steps += each->num_steps;
      total.num_cancelled += each->num_cancelled;
      total.num_drafted += each->num_drafted;
      total.num_accepted += each->num_accepted;
      total.stats.num_preemptions += each->stats.num_preemptions;
      total.stats.prefix_cache_hits += each->stats.prefix_cache_hits;
    }
  }
  // The stories are worth their time only when such things happen in them.
  EXPECT_GT(total.stats.num_preemptions, total.num_steps / 100);
  EXPECT_GT(total.stats.prefix_cache_hits, total.num_steps / 100);
  EXPECT_GT(total.num_cancelled, total.num_steps / 1000);
  EXPECT_GT(total.num_accepted, total.num_steps / 20);
  EXPECT_GT(total.num_drafted - total.num_accepted, total.num_steps / 20);
}

TEST(SchedulerProperty, EveryTokenBudgetGivesTheSame) {
  for (uint64_t seed = 0; seed < 20 && !HasFailure(); ++seed) {
    const Story story = make_story(seed);
    const Ending rich_ending = tell(story, rich_options(story), false);
    for (int64_t budget = 1; budget <= story.max_model_len + 1; ++budget) {
      SCOPED_TRACE(str_cat("seed ", seed, ", budget ", budget));
      Dice dice(seed);
      SchedulerOptions options = poor_options(story, dice);
      options.enable_chunked_prefill = true;
      options.max_num_batched_tokens = budget;
      EXPECT_EQ(tell(story, options, false).outputs, rich_ending.outputs);
    }
  }
}

}  // namespace
}  // namespace quire::testing
