// A recording holds each part of each step and every kernel of the model, and changes nothing that is computed.
#include <gtest/gtest.h>

#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "quire/pooling.h"
#include "quire/quire.h"

namespace quire {
namespace {

const std::string kDemo = QUIRE_DEMO_MODEL_DIR;
constexpr int kNumLayers = 5;

SamplingParams greedy(int32_t max_tokens) {
  return {.temperature = 0.0f, .ignore_eos = true, .max_tokens = max_tokens};
}

// How often each path of names comes: "step/run/forward/layer/gemm" is a product in a layer. Fails where a span ends
// after what encloses it, or layers of a pass are not in order.
std::map<std::string, int> count_paths(const Recording& recording) {
  std::map<std::string, int> counts;
  std::vector<std::pair<std::string, int64_t>> open;  // with their ends
  int next_layer = 0;
  for (const Span& span : recording.spans) {
    while (!open.empty() && span.begin_ns >= open.back().second) open.pop_back();
    const int64_t end = span.begin_ns + span.duration_ns;
    EXPECT_LE(end, open.empty() ? end : open.back().second) << span.name << " ends after what encloses it";
    const std::string path = open.empty() ? span.name : open.back().first + "/" + span.name;
    ++counts[path];
    open.emplace_back(path, end);
    if (std::string(span.name) != "layer") continue;
    EXPECT_STREQ(span.category, "part");
    EXPECT_EQ(span.num_arguments, 1);
    EXPECT_STREQ(span.arguments[0].name, "layer");
    EXPECT_EQ(span.arguments[0].number, next_layer);
    next_layer = (next_layer + 1) % kNumLayers;
  }
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
      {"step", kSteps},
      {"step/plan", kSteps},
      {"step/prepare", kSteps},
      {"step/upload", kSteps},
      {"step/run", kSteps},
      {"step/run/forward", kSteps},
      {"step/run/forward/embedding", kSteps},
      {"step/run/forward/embedding/embedding", kSteps},
      {"step/run/forward/layer", kSteps * kNumLayers},
      {"step/run/forward/layer/norm", kSteps * 2 * kNumLayers},
      {"step/run/forward/layer/gemm", kSteps * 4 * kNumLayers},  // qkv, o, gate and up, down
      {"step/run/forward/layer/rope_kv_write", kSteps * kNumLayers},
      {"step/run/forward/layer/paged_attention", kSteps * kNumLayers},
      {"step/run/forward/head", kSteps},
      {"step/run/forward/head/norm", kSteps},
      {"step/run/forward/head/gemm", kSteps},
      {"step/run/sample", kSteps},
      {"step/run/sample/sample", kSteps},
      {"step/fetch", kSteps},
      {"step/commit", kSteps},
      {"step/deliver", kSteps},
  };
  EXPECT_EQ(count_paths(recording), expected);
  EXPECT_EQ(recording.num_dropped_spans, 0);
  llm.generate(prompts, greedy(2));  // of which nothing is kept
  llm.start_recording();
  EXPECT_TRUE(llm.stop_recording().spans.empty());
}

// The first of the ranks is shown, with what it waits for the others.
TEST(Recording, HoldsTheFirstOfSeveralRanks) {
  LLM llm(kDemo, {.dtype = "float32", .num_threads = 2, .tensor_parallel_size = 2});
  const std::vector<std::vector<int32_t>> prompts = {{300, 301, 302, 303}, {400, 401}};
  const auto plain = llm.generate(prompts, greedy(3));
  ASSERT_TRUE(llm.reset_prefix_cache());
  llm.start_recording();
  const auto recorded = llm.generate(prompts, greedy(3));
  const std::map<std::string, int> counts = count_paths(llm.stop_recording());
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_EQ(plain[i].completions[0].token_ids, recorded[i].completions[0].token_ids);
  }
  const std::string forward = "step/run/forward/";
  EXPECT_EQ(counts.at(forward + "embedding/all_reduce"), 3);
  EXPECT_EQ(counts.at(forward + "layer"), 3 * kNumLayers);
  EXPECT_EQ(counts.at(forward + "layer/gemm"), 3 * kNumLayers * 4);
  EXPECT_EQ(counts.at(forward + "layer/all_reduce"), 3 * kNumLayers * 2);  // behind o and down
  EXPECT_EQ(counts.at(forward + "head/gather"), 3);
}

// cpu_offload_gb has no effect on a CPU, and a recording is none the worse for it.
TEST(Recording, TakesTheLayersOfADraftModelApart) {
  LLM llm(kDemo, {.cpu_offload_gb = 1.0,
                  .speculative_method = "draft_model",
                  .num_speculative_tokens = 2,
                  .draft_model = kDemo,
                  .num_threads = 2});
  llm.start_recording();
  llm.generate({{300, 301, 302, 303}}, greedy(4));
  const std::map<std::string, int> counts = count_paths(llm.stop_recording());
  const int num_passes = counts.at("step/draft/head");
  EXPECT_GT(num_passes, 0);
  EXPECT_EQ(counts.at("step/draft/layer") % kNumLayers, 0);
  EXPECT_GE(counts.at("step/draft/layer"), num_passes * kNumLayers);
  EXPECT_EQ(counts.at("step/run/forward/layer"), counts.at("step/run/forward") * kNumLayers);
}

TEST(Recording, HoldsTheStepsOfPooling) {
  PoolingModel model(kDemo, {.num_threads = 2}, {.pooling_type = "MEAN"});
  const std::vector<PoolingInput> texts = {{.token_ids = {300, 301, 302}}, {.token_ids = {400, 401}}};
  const std::vector<PoolingOutput> plain = model.pool(texts);
  EXPECT_THROW(model.stop_recording(), std::invalid_argument);
  model.start_recording();
  EXPECT_THROW(model.start_recording(), std::invalid_argument);
  std::vector<PoolingOutput> recorded(2);
  for (size_t i = 0; i < texts.size(); ++i) {
    model.submit(texts[i], {}, [&, i](PoolingOutput&& output) {
      EXPECT_THROW(model.stop_recording(), std::invalid_argument);
      recorded[i] = std::move(output);
    });
  }
  EXPECT_TRUE(model.step());
  EXPECT_FALSE(model.step());
  const Recording recording = model.stop_recording();
  for (size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(recorded[i].data, plain[i].data);
  const std::map<std::string, int> expected = {
      {"step", 1},
      {"step/plan", 1},
      {"step/upload", 1},
      {"step/run", 1},
      {"step/run/forward", 1},
      {"step/run/forward/embedding", 1},
      {"step/run/forward/embedding/embedding", 1},
      {"step/run/forward/layer", kNumLayers},
      {"step/run/forward/layer/norm", 2 * kNumLayers},
      {"step/run/forward/layer/gemm", 4 * kNumLayers},
      {"step/run/forward/layer/rope_kv_write", kNumLayers},
      {"step/run/forward/layer/paged_attention", kNumLayers},
      {"step/run/pool", 1},
      {"step/run/pool/final_norm", 1},
      {"step/run/pool/final_norm/norm", 1},
      {"step/run/pool/mean_rows", 1},
      {"step/fetch", 1},
      {"step/commit", 1},
      {"step/deliver", 1},
  };
  EXPECT_EQ(count_paths(recording), expected);
  const Span& plan = recording.spans.at(1);
  EXPECT_STREQ(plan.arguments[0].name, "num_tokens");
  EXPECT_EQ(plan.arguments[0].number, 5);
  EXPECT_EQ(plan.arguments[1].number, 2);
  model.pool(texts);  // of which nothing is kept
  model.start_recording();
  EXPECT_TRUE(model.stop_recording().spans.empty());
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
