// Recordings of an asynchronous device, in emulation: every part and kernel of its stream in order, nothing computed
// otherwise, graphs there again afterwards, and what is left when something fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "cuda/simt/cudart_emu/cudart_emu.h"
#include "engine/pooling_engine.h"
#include "engine_simt/ranks.h"

namespace quire {
namespace {

constexpr int kNumLayers = 5;

EngineOptions options_of(const std::string& dtype) {
  return {.dtype = dtype, .device = "simt", .max_model_len = 128, .max_num_seqs = 6, .max_num_batched_tokens = 64};
}

std::vector<Wish> two_wishes() {
  SamplingParams drawn = {.temperature = 0.8f, .top_p = 0.9f, .seed = 11, .ignore_eos = true, .max_tokens = 4};
  drawn.logprobs = 1;
  return {{story_prompt(9), greedy(4)}, {story_prompt(5), drawn}};
}

// Spans of one track, each with the names of what it lies in: "step/layer/gemm". Fails where one ends behind what
// encloses it, or layers of a pass are not in order.
struct Path {
  std::string path;
  const Span* span = nullptr;
};

std::vector<Path> paths_of(const Recording& recording, bool on_device) {
  std::vector<Path> paths, open;
  int next_layer = 0;
  int64_t last_begin = 0;
  const auto end_of = [](const Path& path) { return path.span->begin_ns + path.span->duration_ns; };
  for (const Span& span : recording.spans) {
    EXPECT_GE(span.begin_ns, last_begin);
    last_begin = span.begin_ns;
    if (span.on_device != on_device) continue;
    while (!open.empty() && span.begin_ns >= end_of(open.back())) open.pop_back();
    Path path = {.path = open.empty() ? span.name : open.back().path + "/" + span.name, .span = &span};
    if (!open.empty()) {
      EXPECT_LE(end_of(path), end_of(open.back())) << path.path << " ends behind what encloses it";
    }
    if (std::string(span.name) == "layer") {
      EXPECT_EQ(span.arguments[0].number, next_layer);
      next_layer = (next_layer + 1) % kNumLayers;
    }
    paths.push_back(path);
    open.push_back(path);
  }
  EXPECT_EQ(next_layer, 0);
  return paths;
}

std::map<std::string, int> counts_of(const std::vector<Path>& paths) {
  std::map<std::string, int> counts;
  for (const Path& path : paths) ++counts[path.path];
  return counts;
}

// Of the layers, each once, in the order of the stream.
std::vector<std::string> kernels_of_first_layer(const std::vector<Path>& paths) {
  std::vector<std::string> names;
  int num_layers = 0;
  for (const Path& path : paths) {
    if (std::string(path.span->name) == "layer" && ++num_layers == 2) break;
    if (std::string(path.span->category) == "kernel" && num_layers == 1) names.emplace_back(path.span->name);
  }
  return names;
}

double number_of(const Span& span, const std::string& name) {
  for (int32_t i = 0; i < span.num_arguments; ++i) {
    if (span.arguments[static_cast<size_t>(i)].name == name) return span.arguments[static_cast<size_t>(i)].number;
  }
  ADD_FAILURE() << span.name << " has no " << name;
  return 0.0;
}

class RecordingSimt : public testing::Test {
 protected:
  void SetUp() override {
    cudart_emu::reset();
    before_ = cudart_emu::live();
  }
  void TearDown() override {
    set_log_sink({});
    cudart_emu::reset();
    EXPECT_EQ(cudart_emu::live(), before_) << "something was left behind";
  }
  cudart_emu::Live before_;
};

TEST_F(RecordingSimt, HoldsEveryPartAndKernelOfTheStreamInOrder) {
  const auto engine = make_engine(options_of("bfloat16"));
  engine->start_recording();
  const auto recorded = generate(*engine, two_wishes());
  const Recording recording = engine->stop_recording();
  EXPECT_EQ(recording.num_dropped_spans, 0);
  const std::vector<Path> device = paths_of(recording, true);
  const std::map<std::string, int> counts = counts_of(device);
  const int num_steps = counts.at("step");
  EXPECT_GE(num_steps, 4);  // the prompts, then three decodes, and what was planned before ends were seen
  // Where rows are told something new there is an update.
  const std::map<std::string, int> expected = {
      {"step", num_steps},
      {"step/update_rows", counts.at("step/update_rows")},
      {"step/prepare_batch", num_steps},
      {"step/embedding", num_steps},
      {"step/embedding/embedding", num_steps},
      {"step/plan_attention", num_steps},
      {"step/layer", num_steps * kNumLayers},
      {"step/layer/norm", num_steps * 2 * kNumLayers},
      {"step/layer/gemm", num_steps * 4 * kNumLayers},
      {"step/layer/rope_kv_write", num_steps * kNumLayers},
      {"step/layer/paged_attention", num_steps * kNumLayers},
      {"step/head", num_steps},
      {"step/head/norm", num_steps},
      {"step/head/gemm", num_steps},
      {"step/sample", num_steps},
      {"step/store_sampled", num_steps},
  };
  EXPECT_EQ(counts, expected);
  const std::vector<std::string> layer = {"norm", "gemm", "rope_kv_write", "paged_attention",
                                          "gemm", "norm", "gemm",          "gemm"};
  EXPECT_EQ(kernels_of_first_layer(device), layer);
  EXPECT_EQ(number_of(*device.front().span, "num_tokens"), 14);
  EXPECT_EQ(number_of(*device.front().span, "num_seqs"), 2);
  for (const Path& path : device) {
    EXPECT_GT(path.span->duration_ns, 0);
    if (path.path == "step/head/gemm") {
      EXPECT_EQ(number_of(*path.span, "m"), 2);
    }
  }
}

// The host's spans are those of a CPU, and nothing runs on the stream before its step was planned.
TEST_F(RecordingSimt, HostSpansHoldTheLaunchesAndComeFirst) {
  const auto engine = make_engine(options_of("float32"));
  engine->start_recording();
  generate(*engine, two_wishes());
  const Recording recording = engine->stop_recording();
  const std::vector<Path> host = paths_of(recording, false), device = paths_of(recording, true);
  const std::map<std::string, int> counts = counts_of(host), on_device = counts_of(device);
  const int num_steps = on_device.at("step");
  for (const char* path : {"step/prepare", "step/upload", "step/run", "step/run/forward", "step/run/sample",
                           "step/fetch", "step/commit", "step/deliver"}) {
    EXPECT_EQ(counts.at(path), num_steps) << path;
  }
  EXPECT_GE(counts.at("step/plan"), num_steps);
  for (const Path& path : host) {
    EXPECT_STREQ(path.span->category, "step") << path.path << ": parts and kernels are timed on the device";
  }
  std::vector<int64_t> launches, runs, fetches;
  for (const Path& path : host) {
    if (path.path == "step/prepare") launches.push_back(path.span->begin_ns);
    if (path.path == "step/fetch") fetches.push_back(path.span->begin_ns + path.span->duration_ns);
  }
  for (const Path& path : device) {
    if (path.path == "step") runs.push_back(path.span->begin_ns);
  }
  ASSERT_EQ(launches.size(), runs.size());
  for (size_t i = 0; i < runs.size(); ++i) {
    EXPECT_GE(runs[i], launches[i]) << "step " << i;
    EXPECT_LE(runs[i], fetches[i]) << "step " << i;
  }
}

TEST_F(RecordingSimt, ChangesNoBitAndGraphsAreUsedAgain) {
  const auto plain = generate(*make_engine(options_of("bfloat16")), two_wishes());
  const auto engine = make_engine(options_of("bfloat16"));
  EXPECT_EQ(generate(*engine, two_wishes()), plain);
  const size_t num_graphs = engine->worker().num_graphs();
  const double capture_seconds = engine->worker().capture_seconds();
  const int64_t num_execs = cudart_emu::live().graph_execs;
  EXPECT_GT(num_graphs, 0u);
  ASSERT_TRUE(engine->reset_prefix_cache());
  const int64_t num_events = cudart_emu::live().events;
  engine->start_recording();
  EXPECT_EQ(generate(*engine, two_wishes()), plain);
  EXPECT_EQ(counts_of(paths_of(engine->stop_recording(), true)).count("step/layer/gemm"), 1u);
  EXPECT_EQ(cudart_emu::live().events, num_events) << "events of the recording";
  EXPECT_EQ(cudart_emu::live().graph_execs, num_execs) << "graphs are kept";
  ASSERT_TRUE(engine->reset_prefix_cache());
  EXPECT_EQ(generate(*engine, two_wishes()), plain);
  EXPECT_EQ(engine->worker().num_graphs(), num_graphs);
  EXPECT_EQ(engine->worker().capture_seconds(), capture_seconds) << "none is captured anew";
  engine->start_recording();
  EXPECT_TRUE(engine->stop_recording().spans.empty());
}

// An engine that records from the beginning captures nothing, and does so when nobody records any more.
TEST_F(RecordingSimt, NothingIsCapturedMeanwhile) {
  const auto engine = make_engine(options_of("bfloat16"));
  engine->start_recording();
  const auto recorded = generate(*engine, two_wishes());
  EXPECT_EQ(engine->worker().num_graphs(), 0u);
  engine->stop_recording();
  ASSERT_TRUE(engine->reset_prefix_cache());
  EXPECT_EQ(generate(*engine, two_wishes()), recorded);
  EXPECT_GT(engine->worker().num_graphs(), 0u);
}

// Begun and ended while a step is under way: it is waited for.
TEST_F(RecordingSimt, BeginsAndEndsBetweenAnyTwoSteps) {
  const auto plain = generate(*make_engine(options_of("bfloat16")), {{story_prompt(9), greedy(9)}});
  const auto engine = make_engine(options_of("bfloat16"));
  Generated got;
  const auto keep = [&](const Delta& delta) {
    if (delta.finished != nullptr) got.token_ids.push_back(delta.finished->completions[0].token_ids);
  };
  engine->submit(story_prompt(9), greedy(9), keep, Notify::finished);
  EXPECT_TRUE(engine->step());
  engine->start_recording();
  EXPECT_TRUE(engine->step());
  EXPECT_TRUE(engine->step());
  const Recording recording = engine->stop_recording();
  EXPECT_EQ(recording.num_dropped_spans, 0);
  EXPECT_EQ(counts_of(paths_of(recording, true)).at("step"), 2);
  while (engine->step()) {
  }
  EXPECT_EQ(got.token_ids, plain[0].token_ids);
}

TEST_F(RecordingSimt, HoldsTheFirstOfSeveralRanks) {
  const std::unique_ptr<Checkpoint> checkpoint = open_safetensors(kDemo);
  EngineOptions options = demo_options();
  const auto engine = engine_of_ranks(kDemo, options, {0, 0}, checkpoint.get());
  const auto plain = generate(*engine, two_wishes());
  ASSERT_TRUE(engine->reset_prefix_cache());
  engine->start_recording();
  EXPECT_EQ(generate(*engine, two_wishes()), plain);
  const std::map<std::string, int> counts = counts_of(paths_of(engine->stop_recording(), true));
  const int num_steps = counts.at("step");
  EXPECT_EQ(counts.at("step/layer"), num_steps * kNumLayers);
  EXPECT_EQ(counts.at("step/layer/all_reduce/reduce_rows"), num_steps * kNumLayers * 2);
  EXPECT_EQ(counts.at("step/head/gather/reduce_rows"), num_steps * 2);
}

TEST_F(RecordingSimt, TakesTheLayersOfADraftModelApart) {
  EngineOptions options = options_of("bfloat16");
  options.speculative_method = "draft_model";
  options.num_speculative_tokens = 2;
  options.draft_model = kDemo;
  const auto engine = make_engine(options);
  const auto plain = generate(*engine, {two_wishes()[0]});
  ASSERT_TRUE(engine->reset_prefix_cache());
  engine->start_recording();
  EXPECT_EQ(generate(*engine, {two_wishes()[0]}), plain);
  const Recording recording = engine->stop_recording();
  const std::map<std::string, int> host = counts_of(paths_of(recording, false));
  const std::map<std::string, int> device = counts_of(paths_of(recording, true));
  EXPECT_EQ(device.at("step"), host.at("step/run"));
  EXPECT_GT(device.at("step/head"), device.at("step")) << "passes of the draft model have heads of their own";
  EXPECT_EQ(device.at("step/layer"), (device.at("step/plan_attention")) * kNumLayers);
}

TEST_F(RecordingSimt, HoldsTheStepsOfPooling) {
  const EngineOptions options = options_of("float32");
  std::unique_ptr<Device> opened = device_of("simt");
  PoolingConfig config = resolve_pooling_config(kDemo, options, {.pooling_type = "MEAN"}, *opened);
  const std::unique_ptr<Checkpoint> checkpoint = open_safetensors(kDemo);
  PoolingEngine engine(std::move(config), std::move(opened), checkpoint.get());
  const auto pool = [&] {
    std::vector<float> vector;
    engine.submit({.token_ids = story_prompt(9)}, {}, [&](PoolingOutput&& output) { vector = std::move(output.data); });
    while (engine.step()) {
    }
    return vector;
  };
  const std::vector<float> plain = pool();
  engine.start_recording();
  EXPECT_EQ(pool(), plain);
  const Recording recording = engine.stop_recording();
  const std::map<std::string, int> device = counts_of(paths_of(recording, true));
  EXPECT_EQ(device.at("step"), 1);
  EXPECT_EQ(device.at("step/layer/gemm"), 4 * kNumLayers);
  EXPECT_EQ(device.at("step/mean_rows"), 1);
  EXPECT_EQ(counts_of(paths_of(recording, false)).at("step/run/forward"), 1);
  EXPECT_EQ(pool(), plain);
}

// A refused launch in the midst of a layer: the step is done again, and both are in the recording.
TEST_F(RecordingSimt, SurvivesAStepThatFails) {
  const auto expected = generate(*make_engine(options_of("bfloat16")), {{story_prompt(5), greedy(4)}});
  const auto engine = make_engine(options_of("bfloat16"));
  std::vector<std::vector<int32_t>> got;
  const auto keep = [&](const Delta& delta) {
    if (delta.finished != nullptr) got.push_back(delta.finished->completions[0].token_ids);
  };
  engine->start_recording();
  engine->submit(story_prompt(5), greedy(4), keep, Notify::finished);
  cudart_emu::fail_launch_after(12);
  set_log_sink([](LogLevel, const std::string&) {});
  EXPECT_THROW(engine->step(), DeviceError);
  while (engine->step()) {
  }
  EXPECT_EQ(got, expected[0].token_ids);
  const Recording recording = engine->stop_recording();
  EXPECT_EQ(recording.num_dropped_spans, 0);
  int num_steps = 0, num_heads = 0;
  for (const Span& span : recording.spans) {
    num_steps += span.on_device && std::string(span.name) == "step" ? 1 : 0;
    num_heads += std::string(span.name) == "head" ? 1 : 0;
  }
  EXPECT_EQ(num_steps, num_heads + 1);
}

// Of a broken device there is what was over before it broke, and no event is left.
TEST_F(RecordingSimt, EndsWithWhatThereIsWhenTheDeviceBreaks) {
  const auto engine = make_engine(options_of("bfloat16"));
  engine->start_recording();
  engine->submit(story_prompt(5), greedy(20), {}, Notify::finished);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(engine->step());
  cudart_emu::fail_kernel_after(7);
  set_log_sink([](LogLevel, const std::string&) {});
  EXPECT_THROW(
      {
        for (int i = 0; i < 10; ++i) engine->step();
      },
      DeviceError);
  const Recording recording = engine->stop_recording();
  EXPECT_GT(recording.num_dropped_spans, 0);
  // Of three that were fetched; the end of the last comes behind what a fetch waits for.
  EXPECT_EQ(counts_of(paths_of(recording, true)).at("step"), 2);
  EXPECT_THROW(engine->start_recording(), DeviceError);
  EXPECT_THROW(engine->stop_recording(), InvalidArgument) << "nothing is recorded";
}

TEST_F(RecordingSimt, AnEngineThatGoesMeanwhileLeavesNothingBehind) {
  const auto engine = make_engine(options_of("bfloat16"));
  engine->start_recording();
  engine->submit(story_prompt(5), greedy(20), {}, Notify::finished);
  EXPECT_TRUE(engine->step());
}

}  // namespace
}  // namespace quire
