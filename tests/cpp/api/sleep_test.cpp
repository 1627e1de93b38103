// Sleep on the CPU, by the public classes and the embedded model: what comes back is the same bits, what goes is gone,
// and nobody is served in between.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "quire/pooling.h"
#include "quire/quire.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

const std::string kDemo = QUIRE_DEMO_MODEL_DIR;

std::vector<int32_t> prompt_of(int32_t length, int32_t salt) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < length; ++i) ids.push_back(300 + (i * 37 + salt * 101) % 1500);
  return ids;
}

SamplingParams drawn(int32_t max_tokens, int32_t n = 1) {
  return {.n = n, .temperature = 0.9f, .seed = 7, .ignore_eos = true, .max_tokens = max_tokens, .logprobs = 2};
}

EngineOptions options_of(const char* dtype = "float32") {
  return {.dtype = dtype, .max_model_len = 256, .num_threads = 2};
}

void expect_same_bits(const std::vector<RequestOutput>& a, const std::vector<RequestOutput>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].completions.size(), b[i].completions.size());
    for (size_t c = 0; c < a[i].completions.size(); ++c) {
      EXPECT_EQ(a[i].completions[c].token_ids, b[i].completions[c].token_ids) << "request " << i;
      EXPECT_EQ(a[i].completions[c].logprobs.logprobs, b[i].completions[c].logprobs.logprobs) << "request " << i;
    }
  }
}

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return {};
}

// What is logged in its life.
class Log {
 public:
  Log() {
    set_log_callback([this](int, const std::string& message) { text_ += message + "\n"; });
  }
  ~Log() { set_log_callback({}); }
  bool has(const std::string& part) const { return text_.find(part) != std::string::npos; }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

// A copy of the embedded model that a test may spoil.
class OwnModel {
 public:
  OwnModel() : folder_(fs::temp_directory_path() / ("quire_sleep_" + std::to_string(::getpid()))) {
    fs::remove_all(folder_);
    fs::copy(kDemo, folder_);
  }
  ~OwnModel() { fs::remove_all(folder_); }
  std::string folder() const { return folder_.string(); }
  fs::path weights() const { return folder_ / "model.safetensors"; }
  // In place: the same file, other bytes.
  void overwrite() const {
    std::fstream file(weights(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-64, std::ios::end);
    file << std::string(64, 'x');
    file.close();
    // The clock of the file system may not have moved since it was copied.
    fs::last_write_time(weights(), fs::last_write_time(weights()) + std::chrono::seconds(2));
  }

 private:
  fs::path folder_;
};

class SleepBits : public ::testing::TestWithParam<const char*> {};

// Level 1, as often as one likes, and in two halves: a request gives the bits that it gave before.
TEST_P(SleepBits, WakesUpWithTheSameBits) {
  LLM llm(kDemo, options_of(GetParam()));
  const std::vector<std::vector<int32_t>> prompts = {prompt_of(90, 0), prompt_of(7, 1), prompt_of(33, 2)};
  const std::vector<RequestOutput> before = llm.generate(prompts, drawn(12, 2));
  for (int i = 0; i < 2; ++i) {
    llm.sleep();
    EXPECT_TRUE(llm.is_sleeping());
    EXPECT_TRUE(llm.wake_up());
    EXPECT_FALSE(llm.is_sleeping());
    expect_same_bits(llm.generate(prompts, drawn(12, 2)), before);
  }
  llm.sleep();
  EXPECT_FALSE(llm.wake_up({"weights"}));
  EXPECT_TRUE(llm.is_sleeping());
  EXPECT_NE(refusal([&] { llm.submit(prompts[0]); }).find("kv_cache"), std::string::npos);
  EXPECT_TRUE(llm.wake_up({"kv_cache"}));
  expect_same_bits(llm.generate(prompts, drawn(12, 2)), before);
}

INSTANTIATE_TEST_SUITE_P(, SleepBits, testing::Values("float32", "bfloat16"));

TEST(Sleep, WeightsOfInt8ComeBack) {
  EngineOptions options = options_of();
  options.quantization = "int8";
  LLM llm(kDemo, options);
  const std::vector<RequestOutput> before = llm.generate({prompt_of(40, 1)}, drawn(10));
  llm.sleep();
  llm.wake_up();
  expect_same_bits(llm.generate({prompt_of(40, 1)}, drawn(10)), before);
}

TEST(Sleep, DummyWeightsAndAModelThatGuessesComeBack) {
  EngineOptions options = options_of();
  options.load_format = "dummy";
  LLM dummy(kDemo, options);
  const std::vector<RequestOutput> before = dummy.generate({prompt_of(40, 1)}, drawn(10));
  dummy.sleep();
  dummy.wake_up();
  expect_same_bits(dummy.generate({prompt_of(40, 1)}, drawn(10)), before);

  options = options_of();
  options.speculative_method = "draft_model";
  options.draft_model = kDemo;
  options.num_speculative_tokens = 3;
  LLM guessing(kDemo, options);
  const std::vector<RequestOutput> guessed = guessing.generate({prompt_of(40, 1)}, drawn(10));
  const int64_t num_accepted = guessing.stats().num_accepted_tokens;
  ASSERT_GT(num_accepted, 0);
  guessing.sleep();
  guessing.wake_up();
  expect_same_bits(guessing.generate({prompt_of(40, 1)}, drawn(10)), guessed);
  EXPECT_EQ(guessing.stats().num_accepted_tokens, 2 * num_accepted);  // the draft model is what it was
}

TEST(Sleep, WhoIsAsleepTakesNoRequests) {
  LLM llm(kDemo, options_of());
  const std::vector<RequestOutput> before = llm.generate({prompt_of(20, 3)}, drawn(5));
  for (const int32_t level : {0, 1}) {
    llm.sleep(level);
    const std::string said = refusal([&] { llm.generate({prompt_of(20, 3)}, drawn(5)); });
    EXPECT_NE(said.find("level " + std::to_string(level)), std::string::npos) << said;
    EXPECT_NE(said.find("wake_up()"), std::string::npos) << said;
    EXPECT_FALSE(refusal([&] { llm.submit_beam_search(prompt_of(5, 0), {.beam_width = 2, .max_tokens = 3}); }).empty());
    EXPECT_FALSE(llm.step());
    llm.wake_up();
  }
  expect_same_bits(llm.generate({prompt_of(20, 3)}, drawn(5)), before);
}

// Level 2 keeps nothing; a request says so, instead of computing with what is not there.
TEST(Sleep, WithoutWeightsNobodyIsServed) {
  LLM llm(kDemo, options_of());
  llm.sleep(2);
  EXPECT_TRUE(llm.wake_up());
  EXPECT_FALSE(llm.is_sleeping());
  const std::string said = refusal([&] { llm.generate({prompt_of(20, 3)}, drawn(5)); });
  EXPECT_NE(said.find("sleep(level=2)"), std::string::npos) << said;
}

TEST(Sleep, WhatDoesNothingIsToldAndWrongCallsAreRefused) {
  LLM llm(kDemo, options_of());
  EXPECT_FALSE(refusal([&] { llm.sleep(3); }).empty());
  EXPECT_FALSE(refusal([&] { llm.sleep(-1); }).empty());
  EXPECT_FALSE(refusal([&] { llm.release_kv_cache_memory(); }).empty());
  Log log;
  EXPECT_TRUE(llm.wake_up());
  EXPECT_TRUE(log.has("the engine is awake"));
  llm.sleep(1);
  llm.sleep(1);
  EXPECT_TRUE(log.has("sleeps already")) << log.text();
  EXPECT_FALSE(llm.wake_up({"biases"}));
  EXPECT_TRUE(log.has("biases")) << log.text();
  EXPECT_FALSE(llm.wake_up({"weights"}));
  EXPECT_FALSE(llm.wake_up({"weights"}));
  EXPECT_TRUE(log.has("\"weights\": that is awake")) << log.text();
  EXPECT_FALSE(llm.wake_up({"scheduling"}));
  EXPECT_TRUE(log.has("before weights and kv_cache")) << log.text();
  EXPECT_TRUE(llm.wake_up());
}

// Several requests in flight: prompts in chunks, siblings, one that waits, a beam search.
class SleepModes : public ::testing::Test {
 protected:
  SleepModes() : llm_(kDemo, small()) {}

  static EngineOptions small() {
    EngineOptions options = options_of();
    options.max_num_batched_tokens = 32;
    options.max_num_seqs = 4;
    return options;
  }

  // Submits all and runs a few steps.
  void begin(int num_steps) {
    outputs_.assign(5, {});
    deltas_.assign(5, {});
    for (size_t i = 0; i < 4; ++i) {
      const auto keep = [this, i](const Delta& delta) {
        if (delta.finished != nullptr) outputs_[i] = *delta.finished;
        if (delta.finished == nullptr && delta.index == 0) {
          deltas_[i].insert(deltas_[i].end(), delta.token_ids.begin(), delta.token_ids.end());
        }
      };
      llm_.submit(prompt_of(40 + static_cast<int32_t>(i) * 9, static_cast<int32_t>(i)), drawn(14, i == 1 ? 2 : 1),
                  keep);
    }
    llm_.submit_beam_search(prompt_of(21, 9), {.beam_width = 3, .max_tokens = 9}, [this](const Delta& delta) {
      if (delta.finished != nullptr) outputs_[4] = *delta.finished;
    });
    for (int i = 0; i < num_steps; ++i) ASSERT_TRUE(llm_.step());
  }
  void finish() {
    while (llm_.step()) {
    }
  }

  LLM llm_;
  std::vector<RequestOutput> outputs_;
  std::vector<std::vector<int32_t>> deltas_;
};

TEST_F(SleepModes, KeptRequestsGoOnWithTheSameBits) {
  begin(0);
  finish();
  const std::vector<RequestOutput> expected = outputs_;
  ASSERT_EQ(expected[4].completions.size(), 3u);
  for (const int32_t level : {0, 1}) {
    for (const int num_steps : {1, 4, 9, 13}) {
      begin(num_steps);
      llm_.sleep(level, SleepMode::keep);
      EXPECT_GT(llm_.stats().num_running + llm_.stats().num_waiting, 0);
      EXPECT_FALSE(llm_.step());
      if (level == 0 && num_steps == 9) {
        llm_.release_kv_cache_memory();
        EXPECT_EQ(llm_.stats().num_running, 0);
      }
      EXPECT_TRUE(llm_.wake_up());
      finish();
      expect_same_bits(outputs_, expected);
      for (size_t i = 0; i < 4; ++i) EXPECT_EQ(deltas_[i], expected[i].completions[0].token_ids) << "told once each";
    }
  }
}

// What a request had before is recomputed with the weights that came in its sleep.
TEST(Sleep, KeptRequestsGoOnWithNewWeights) {
  LLM llm(kDemo, options_of()), changed(kDemo, options_of());
  const std::vector<float> norm(256, 0.37f);
  const auto change = [&](LLM& model) {
    bool is_given = false;
    model.load_weights([&](ExternalTensor& tensor) {
      tensor = {.name = "model.norm.weight", .dtype = "float32", .shape = {256}, .data = norm.data()};
      return !std::exchange(is_given, true);
    });
  };
  change(changed);
  const SamplingParams params = {.temperature = 0.0f, .ignore_eos = true, .max_tokens = 20, .logprobs = 2};
  const std::vector<int32_t> prompt = prompt_of(70, 3);
  RequestOutput output;
  llm.submit(prompt, params, [&](const Delta& delta) {
    if (delta.finished != nullptr) output = *delta.finished;
  });
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(llm.step());
  EXPECT_NE(refusal([&] { change(llm); }).find("requests are in flight"), std::string::npos);
  llm.sleep(0, SleepMode::keep);
  change(llm);
  EXPECT_TRUE(llm.wake_up());
  while (llm.step()) {
  }
  ASSERT_EQ(output.completions.at(0).token_ids.size(), 20u);
  const std::vector<int32_t>& all = output.completions[0].token_ids;
  const auto rest_after = [&](LLM& model, size_t num_old) {
    std::vector<int32_t> begin = prompt;
    begin.insert(begin.end(), all.begin(), all.begin() + static_cast<ptrdiff_t>(num_old));
    SamplingParams rest = params;
    rest.max_tokens = 20 - static_cast<int32_t>(num_old);
    return model.generate({begin}, rest)[0].completions[0];
  };
  // The first six steps were those of the old weights; the log-probabilities behind them are those of the new ones.
  const Completion expected = rest_after(changed, 6);
  const std::vector<float>& told = output.completions[0].logprobs.logprobs;
  const std::vector<float>& wanted = expected.logprobs.logprobs;
  ASSERT_LT(wanted.size(), told.size());
  EXPECT_EQ(std::vector<float>(told.end() - static_cast<ptrdiff_t>(wanted.size()), told.end()), wanted);
  EXPECT_EQ(std::vector<int32_t>(all.begin() + 6, all.end()), expected.token_ids);
}

TEST_F(SleepModes, AbortedRequestsEndAndAreTold) {
  begin(0);
  finish();
  const std::vector<RequestOutput> expected = outputs_;
  for (const int32_t level : {0, 1}) {
    begin(5);
    llm_.sleep(level, SleepMode::abort);
    for (const RequestOutput& output : outputs_) {
      ASSERT_FALSE(output.completions.empty());
      EXPECT_EQ(output.completions.back().finish_reason, FinishReason::abort);
    }
    EXPECT_EQ(llm_.stats().num_running + llm_.stats().num_waiting, 0);
    llm_.wake_up();
    begin(0);
    finish();
    expect_same_bits(outputs_, expected);
  }
}

TEST_F(SleepModes, WaitedForRequestsFinishFirst) {
  begin(0);
  finish();
  const std::vector<RequestOutput> expected = outputs_;
  begin(3);
  llm_.sleep(1, SleepMode::wait);
  expect_same_bits(outputs_, expected);
  llm_.wake_up();
  begin(3);
  llm_.sleep(0, SleepMode::keep);
  EXPECT_NE(refusal([&] { llm_.sleep(1, SleepMode::wait); }).find("for ever"), std::string::npos);
  llm_.sleep(1, SleepMode::keep);  // deeper
  llm_.wake_up();
  finish();
  expect_same_bits(outputs_, expected);
}

TEST_F(SleepModes, ACallbackCannotSleepOrWake) {
  std::string said;
  llm_.submit(prompt_of(9, 1), drawn(3), [&](const Delta&) {
    said = refusal([&] { llm_.sleep(1); });
    said += refusal([&] { llm_.wake_up(); });
  });
  finish();
  EXPECT_NE(said.find("put its engine to sleep"), std::string::npos) << said;
  EXPECT_NE(said.find("wake its engine up"), std::string::npos) << said;
  EXPECT_FALSE(llm_.is_sleeping());
}

// Another thread is in the midst of generate(), whose steps follow each other closely.
TEST_F(SleepModes, ACallOfAnotherThreadWaitsAndGoesOn) {
  const std::vector<RequestOutput> expected = llm_.generate({prompt_of(50, 0)}, drawn(60));
  int num_caught = 0;
  for (int i = 0; i < 20 && num_caught == 0; ++i) {
    std::atomic<bool> has_begun = false, is_asked = false;
    SamplingParams params = drawn(60);
    params.logits_processors.push_back([&](std::span<const int32_t>, std::span<const int32_t>, std::span<float>) {
      has_begun = true;
      while (!is_asked) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    });
    std::vector<RequestOutput> got;
    std::thread other([&] { got = llm_.generate({prompt_of(50, 0)}, params); });
    while (!has_begun) std::this_thread::yield();
    is_asked = true;
    llm_.sleep(1, SleepMode::keep);
    EXPECT_EQ(llm_.stats().num_running, 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    if (llm_.stats().num_waiting == 1) ++num_caught;  // else it had ended before
    llm_.wake_up();
    other.join();
    expect_same_bits(got, expected);
  }
  EXPECT_EQ(num_caught, 1);
}

// ------------------------------------------------------------------------------------- where weights come from again

TEST(SleepSource, AFileThatIsGoneOrReplacedIsStillThere) {
  OwnModel model;
  LLM llm(model.folder(), options_of());
  const std::vector<RequestOutput> before = llm.generate({prompt_of(20, 3)}, drawn(8));
  llm.sleep();
  fs::rename(model.weights(), model.weights().string() + ".old");
  std::ofstream(model.weights()) << "something else";
  llm.wake_up();
  expect_same_bits(llm.generate({prompt_of(20, 3)}, drawn(8)), before);
  fs::remove_all(model.folder());
  llm.sleep();
  llm.wake_up();
  expect_same_bits(llm.generate({prompt_of(20, 3)}, drawn(8)), before);
}

TEST(SleepSource, AFileThatWasWrittenToInSleepIsRefused) {
  OwnModel model;
  LLM llm(model.folder(), options_of());
  llm.sleep();
  model.overwrite();
  const std::string said = refusal([&] { llm.wake_up(); });
  EXPECT_NE(said.find("model.safetensors was written to"), std::string::npos) << said;
  EXPECT_NE(said.find("sleep(level=2)"), std::string::npos) << said;
  EXPECT_TRUE(llm.is_sleeping());
  EXPECT_FALSE(refusal([&] { llm.generate({prompt_of(20, 3)}, drawn(8)); }).empty());
  EXPECT_FALSE(llm.wake_up({"kv_cache"}));  // that can
  llm.sleep(2);
  EXPECT_TRUE(llm.wake_up());
}

// Weights that could not be had again are not given away.
TEST(SleepSource, AFileThatWasWrittenToBeforeSleepIsNotNeeded) {
  OwnModel model;
  LLM llm(model.folder(), options_of());
  const std::vector<RequestOutput> before = llm.generate({prompt_of(20, 3)}, drawn(8));
  model.overwrite();
  Log log;
  llm.sleep();
  EXPECT_TRUE(log.has("was written to")) << log.text();
  llm.wake_up();
  expect_same_bits(llm.generate({prompt_of(20, 3)}, drawn(8)), before);
}

// ---------------------------------------------------------------------------------------------------------- pooling

TEST(SleepPooling, WakesUpWithTheSameBits) {
  for (const char* type : {"LAST", "MEAN", "ALL"}) {
    PoolingModel model(kDemo, options_of("bfloat16"), {.pooling_type = type});
    const std::vector<PoolingInput> texts = {{.token_ids = prompt_of(70, 1)}, {.token_ids = prompt_of(9, 2)}};
    const std::vector<PoolingOutput> before = model.pool(texts);
    for (const bool in_parts : {false, true}) {
      model.sleep();
      EXPECT_NE(refusal([&] { model.pool(texts); }).find("wake_up()"), std::string::npos);
      EXPECT_EQ(model.wake_up(in_parts ? std::vector<std::string>{"weights"} : std::vector<std::string>()), !in_parts);
      EXPECT_TRUE(in_parts ? model.wake_up({"kv_cache"}) : !model.is_sleeping());
      const std::vector<PoolingOutput> after = model.pool(texts);
      for (size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(after[i].data, before[i].data) << type;
    }
  }
}

TEST(SleepPooling, ModesAndRefusals) {
  PoolingModel model(kDemo, options_of(), {});
  const std::vector<float> expected = model.pool({{.token_ids = prompt_of(30, 1)}}).front().data;
  std::vector<PoolingOutput> told;
  const auto submit = [&] {
    told.clear();
    model.submit({.token_ids = prompt_of(30, 1)}, {},
                 [&](PoolingOutput&& output) { told.push_back(std::move(output)); });
  };
  submit();
  model.sleep(1, SleepMode::keep);
  EXPECT_FALSE(model.step());
  model.wake_up();
  while (model.step()) {
  }
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0].data, expected);
  submit();
  model.sleep(0, SleepMode::wait);
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0].data, expected);
  model.wake_up({"scheduling"});
  submit();
  model.sleep(1, SleepMode::abort);
  ASSERT_EQ(told.size(), 1u);
  EXPECT_TRUE(told[0].is_cancelled);
  model.sleep(2);
  EXPECT_TRUE(model.wake_up());
  EXPECT_NE(refusal(submit).find("sleep(level=2)"), std::string::npos);
}

}  // namespace
}  // namespace quire
