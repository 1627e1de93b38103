// A recording holds each part of each step and every kernel of the model, and changes nothing that is computed.
#include <gtest/gtest.h>

#include <map>
#include <stdexcept>
#include <string>

#include "quire/quire.h"

namespace quire {
namespace {

const std::string kDemo = QUIRE_DEMO_MODEL_DIR;
constexpr int kNumLayers = 5;

SamplingParams greedy(int32_t max_tokens) {
  return {.temperature = 0.0f, .ignore_eos = true, .max_tokens = max_tokens};
}

std::map<std::string, int> count_names(const Recording& recording) {
  std::map<std::string, int> counts;
  for (const Span& span : recording.spans) ++counts[std::string(span.category) + "/" + span.name];
  return counts;
}

TEST(Recording, HoldsEveryKernelOfEveryStep) {
  LLM llm(kDemo, {.num_threads = 2});
  const std::vector<std::vector<int32_t>> prompts = {{300, 301, 302, 303}, {400, 401}};
  const auto plain = llm.generate(prompts, greedy(3));
  ASSERT_TRUE(llm.reset_prefix_cache());
  llm.start_recording();
  const auto recorded = llm.generate(prompts, greedy(3));
  const Recording recording = llm.stop_recording();
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_EQ(plain[i].completions[0].token_ids, recorded[i].completions[0].token_ids);
  }
  constexpr int kSteps = 3;  // both prompts, then two decodes of both
  const std::map<std::string, int> expected = {
      {"step/step", kSteps},
      {"step/plan", kSteps},
      {"step/prepare", kSteps},
      {"step/upload", kSteps},
      {"step/run", kSteps},
      {"step/forward", kSteps},
      {"step/sample", kSteps},
      {"step/fetch", kSteps},
      {"step/commit", kSteps},
      {"step/deliver", kSteps},
      {"kernel/embedding", kSteps},
      {"kernel/norm", kSteps * (2 * kNumLayers + 1)},
      {"kernel/gemm", kSteps * (4 * kNumLayers + 1)},  // qkv, o, gate and up, down; head
      {"kernel/rope_kv_write", kSteps * kNumLayers},
      {"kernel/paged_attention", kSteps * kNumLayers},
      {"kernel/sample", kSteps},
  };
  EXPECT_EQ(count_names(recording), expected);
  EXPECT_EQ(recording.num_dropped_spans, 0);
  llm.generate(prompts, greedy(2));  // of which nothing is kept
  llm.start_recording();
  EXPECT_TRUE(llm.stop_recording().spans.empty());
}

TEST(Recording, SpansAreOrderedAndNested) {
  LLM llm(kDemo, {.num_threads = 1});
  llm.start_recording();
  llm.generate({{300, 301, 302}}, greedy(2));
  const Recording recording = llm.stop_recording();
  ASSERT_FALSE(recording.spans.empty());
  EXPECT_STREQ(recording.spans.front().name, "step");
  std::vector<int64_t> ends;
  for (size_t i = 0; i < recording.spans.size(); ++i) {
    const Span& span = recording.spans[i];
    EXPECT_GE(span.begin_ns, recording.spans[i == 0 ? 0 : i - 1].begin_ns);
    while (!ends.empty() && span.begin_ns >= ends.back()) ends.pop_back();
    const int64_t end = span.begin_ns + span.duration_ns;
    EXPECT_LE(end, ends.empty() ? end : ends.back()) << span.name << " ends after what encloses it";
    EXPECT_EQ(ends.empty(), std::string(span.name) == "step") << span.name;
    ends.push_back(end);
  }
}

TEST(Recording, CannotBeginTwiceOrEndInACallback) {
  LLM llm(kDemo, {.num_threads = 1});
  EXPECT_THROW(llm.stop_recording(), std::invalid_argument);
  llm.start_recording();
  EXPECT_THROW(llm.start_recording(), std::invalid_argument);
  int num_refused = 0;
  llm.submit({300, 301}, greedy(1), [&](const Delta&) {
    EXPECT_THROW(llm.stop_recording(), std::invalid_argument);
    ++num_refused;
  });
  while (llm.step()) {
  }
  EXPECT_GT(num_refused, 0);
  EXPECT_FALSE(llm.stop_recording().spans.empty());
}

TEST(MachineLimits, ArePositiveAndRefuseNonsense) {
  const MachineLimits limits = measure_machine("", 1, int64_t{1} << 20);
  EXPECT_EQ(limits.num_threads, 1);
  EXPECT_GT(limits.read_bytes_per_second, 0.0);
  if (limits.kernels != "portable") {
    EXPECT_GT(limits.f32_flops, 0.0);
    EXPECT_GE(limits.bf16_flops, limits.f32_flops);
  }
  EXPECT_THROW(measure_machine("", -1), std::invalid_argument);
  EXPECT_THROW(measure_machine("", 1, 0), std::invalid_argument);
  EXPECT_THROW(measure_machine("sse9", 1), std::invalid_argument);
}

}  // namespace
}  // namespace quire
