// A scheduler with a fake model, and what its requests must give whatever the scheduler does.
//
// The expected output is made by a loop over the prompt alone; stop strings are searched in the whole text there, so
// the two sides share no code.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/fake_model.h"
#include "engine/scheduler.h"

namespace quire::testing {

struct ExpectedOutput {
  std::vector<int32_t> tokens;
  FinishReason reason = FinishReason::none;
  int32_t stop_token_id = -1;
  int32_t stop_string_index = -1;
};

// What the model "says" instead of a hash; empty: hashes all the way.
using Script = std::vector<int32_t>;

// Whether draft number `i` of a proposal, for that index of a request's output, is what the model will say.
using IsRight = std::function<bool(uint64_t id, int32_t output_index, int32_t i)>;

ExpectedOutput expected_output(const Request& request, int32_t index, const Script& script);

class Harness {
 public:
  explicit Harness(const SchedulerOptions& options);

  void add(std::unique_ptr<Request> request, Script script = {});
  bool cancel(uint64_t request_id);

  // With num_speculative_tokens: sequences that go on get as many drafts; all are right unless said otherwise.
  void set_drafter(IsRight is_right) { is_right_ = std::move(is_right); }
  int64_t num_accepted() const { return num_accepted_; }
  int64_t num_drafted() const { return num_drafted_; }

  // plan and the model; false when there was nothing to do, or nothing before a commit.
  bool plan();
  // The oldest step in flight; checks the books, and the outputs of requests that finished.
  void commit();
  // With device rows it plans one step ahead: the tokens of a step are told after the next one was planned.
  bool step();
  size_t max_in_flight() const { return options_.device_rows ? Scheduler::kMaxInFlight : 1; }
  // Forgets what is in flight, as after a failure of the device.
  void abandon();
  void run_until_idle();

  Scheduler& scheduler() { return scheduler_; }
  // Planned last.
  const Batch& batch() const { return batch_; }
  const std::map<uint64_t, std::shared_ptr<Request>>& finished() const { return finished_; }
  // (request, index, first position, end position) of each sequence of the batch planned last.
  struct Planned {
    uint64_t id;
    int32_t index, begin, end;
  };
  const std::vector<Planned>& planned() const { return planned_; }
  // Sequences preempted by the last plan().
  const std::vector<uint64_t>& preempted() const { return preempted_; }
  int64_t num_steps() const { return num_steps_; }
  // Skips the check of every book after every step, for tests of cost.
  void set_checks(bool checks) { checks_ = checks; }

 private:
  struct Step {
    Batch batch;
    std::vector<int32_t> sampled;
    std::vector<int32_t> slots, draft_slots;  // written in the caches of the two models
  };

  void run_model(Step& step);
  void run_draft_model(Step& step);
  void propose(Sequence& sequence);
  void check_finished();

  SchedulerOptions options_;
  FakeModel model_, draft_model_;
  IsRight is_right_ = [](uint64_t, int32_t, int32_t) { return true; };
  int64_t num_drafted_ = 0, num_accepted_ = 0;
  FakeRows rows_;
  Scheduler scheduler_;
  Batch batch_;
  std::deque<Step> in_flight_;
  std::map<uint64_t, const Request*> live_;
  std::map<uint64_t, Script> scripts_;
  std::map<uint64_t, std::shared_ptr<Request>> finished_;
  std::map<uint64_t, int32_t> preemptions_;
  std::vector<uint64_t> preempted_;
  std::vector<Planned> planned_;
  int64_t num_steps_ = 0;
  bool checks_ = true;
};

}  // namespace quire::testing
