// The whole engine on the CUDA device: the embedded model, from prompt to tokens, with every kernel and the CUDA
// runtime in emulation, whose streams do nothing before somebody waits for them.
//
// Tokens are compared with the CPU backend's, bits with the same request in another batch, in chunks, after a prefix
// hit or a preemption, launch by launch or from graphs, planned ahead or not.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "cuda/simt/cudart_emu/cudart_emu.h"
#include "cuda/simt/engine.h"
#include "engine_simt/demo_engine.h"

namespace quire {
namespace {

EngineOptions options_of(const char* dtype = "float32") {
  return {.dtype = dtype, .max_model_len = 128, .max_num_seqs = 4, .max_num_batched_tokens = 64};
}

std::vector<Generated> generate(const EngineOptions& options, const std::vector<Wish>& wishes) {
  return generate(*make_engine(options), wishes);
}

SamplingParams greedy(int32_t max_tokens) {
  return {.temperature = 0.0f, .ignore_eos = true, .max_tokens = max_tokens, .logprobs = 0};
}

// Every way in which a row of sampling parameters comes to the device.
std::vector<Wish> many_wishes() {
  std::vector<Wish> wishes = {{story_prompt(17), greedy(5)}};
  SamplingParams drawn = {
      .temperature = 0.8f, .top_p = 0.9f, .top_k = 40, .seed = 11, .ignore_eos = true, .max_tokens = 4, .logprobs = 2};
  wishes.push_back({story_prompt(5), drawn});
  drawn.prompt_logprobs = 1;
  drawn.n = 2;
  drawn.logprobs = 0;
  wishes.push_back({story_prompt(10), drawn});
  SamplingParams biased = greedy(4);
  biased.logit_bias = {{700, 3.0f}, {701, 2.5f}};
  biased.allowed_token_ids = {500, 600, 700, 701, 702};
  biased.min_tokens = 2;
  biased.stop_token_ids = {700};
  wishes.push_back({story_prompt(6), biased});
  return wishes;
}

class EngineOnSimt : public testing::Test {
 protected:
  void SetUp() override { cudart_emu::reset(); }
  void TearDown() override {
    simt::set_order(simt::Order::forward);
    cudart_emu::reset();
  }
};

class EngineOnSimtTypes : public EngineOnSimt, public testing::WithParamInterface<const char*> {};

// Greedy tokens and their logprobs agree with the CPU's: the kernels sum in another order, nothing else.
TEST_P(EngineOnSimtTypes, WritesWhatTheCpuWrites) {
  const std::vector<Wish> wishes = {{story_prompt(21), greedy(4)}, {story_prompt(5), greedy(4)}};
  EngineOptions on_cpu = options_of(GetParam());
  on_cpu.device = "cpu";
  const auto expected = generate(on_cpu, wishes);
  const auto got = generate(options_of(GetParam()), wishes);
  const float tolerance = std::string(GetParam()) == "float32" ? 1e-4f : 0.05f;
  for (size_t i = 0; i < wishes.size(); ++i) {
    EXPECT_EQ(got[i].token_ids, expected[i].token_ids);
    ASSERT_EQ(got[i].logprobs[0].size(), expected[i].logprobs[0].size());
    for (size_t t = 0; t < got[i].logprobs[0].size(); ++t) {
      EXPECT_NEAR(got[i].logprobs[0][t], expected[i].logprobs[0][t], tolerance) << "prompt " << i << " token " << t;
    }
  }
}

// A request's bits do not depend on its batch mates, on chunking or on the order in which threads run.
TEST_P(EngineOnSimtTypes, BitsDoNotDependOnTheBatch) {
  const Wish wish = {
      story_prompt(19),
      {.temperature = 0.8f, .top_p = 0.9f, .seed = 11, .ignore_eos = true, .max_tokens = 3, .logprobs = 0}};
  const auto alone = generate(options_of(GetParam()), {wish});
  simt::set_order(simt::Order::reverse, 1);
  EngineOptions chunked = options_of(GetParam());
  chunked.max_num_batched_tokens = 7;
  const auto among = generate(chunked, {{story_prompt(8), wish.params}, wish});
  EXPECT_EQ(alone[0], among[1]);
}

// Of the prompt's tokens: the CPU's values, and the same bits in chunks, among others and after the prefix was cached.
// Bits are compared in bfloat16 alone, whose products the emulation does four times as fast.
TEST_P(EngineOnSimtTypes, PromptLogprobs) {
  Wish wish = {story_prompt(21), greedy(2)};
  wish.params.prompt_logprobs = 2;
  EngineOptions on_cpu = options_of(GetParam());
  on_cpu.device = "cpu";
  const auto expected = generate(on_cpu, {wish});
  const auto engine = make_engine(options_of(GetParam()));
  const auto got = generate(*engine, {wish});
  ASSERT_EQ(got[0].prompt_logprobs.size(), 60u);
  const float tolerance = std::string(GetParam()) == "float32" ? 1e-4f : 0.05f;
  for (size_t i = 0; i < 60; i += 3) {
    EXPECT_EQ(got[0].prompt_ids[i], wish.prompt[i / 3 + 1]);
    for (size_t j = i; j < i + 3; ++j) {
      EXPECT_NEAR(got[0].prompt_logprobs[j], expected[0].prompt_logprobs[j], tolerance) << j;
    }
  }
  if (GetParam() == std::string("float32")) return;
  EXPECT_EQ(generate(*engine, {wish})[0], got[0]) << "prefix in the cache";
  simt::set_order(simt::Order::reverse, 1);
  EngineOptions chunked = options_of(GetParam());
  chunked.max_num_batched_tokens = 7;
  EXPECT_EQ(generate(chunked, {{story_prompt(8), wish.params}, wish})[1], got[0]) << "in chunks, among others";
}

INSTANTIATE_TEST_SUITE_P(, EngineOnSimtTypes, testing::Values("float32", "bfloat16"),
                         [](const auto& instance) { return std::string(instance.param); });

// Tokens of every kind of request, from an engine that replays graphs and plans ahead.
TEST_F(EngineOnSimt, EveryKindOfRequestGivesTheTokensOfTheCpu) {
  EngineOptions on_cpu = options_of();
  on_cpu.device = "cpu";
  const auto expected = generate(on_cpu, many_wishes());
  const auto engine = make_engine(options_of());
  const auto got = generate(*engine, many_wishes());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i].token_ids, expected[i].token_ids) << "request " << i;
  EXPECT_GT(engine->worker().num_graphs(), 0u);
}

// Four engines that run a step in other ways give the same bits.
TEST_F(EngineOnSimt, GraphsAndPlanningAheadChangeNoBit) {
  EngineOptions options = options_of("bfloat16");
  options.enforce_eager = true;
  options.async_scheduling = false;
  const auto plain = generate(options, many_wishes());
  for (const int way : {1, 2, 3}) {
    options.enforce_eager = way == 1;
    options.async_scheduling = way != 2;
    const auto engine = make_engine(options);
    EXPECT_EQ(generate(*engine, many_wishes()), plain) << "way " << way;
    EXPECT_EQ(engine->worker().num_graphs() > 0, !options.enforce_eager);
  }
}

// Layers that stay in host memory arrive in time, launch by launch and in replayed graphs.
TEST_F(EngineOnSimt, OffloadedLayersChangeNoBit) {
  const auto resident = generate(options_of("bfloat16"), many_wishes());
  EngineOptions options = options_of("bfloat16");
  options.cpu_offload_gb = 1.0;  // all of them
  const auto engine = make_engine(options);
  EXPECT_FALSE(engine->config().memory.offload.empty());
  EXPECT_EQ(generate(*engine, many_wishes()), resident);
  EXPECT_GT(engine->worker().num_graphs(), 0u);
}

// Who gives batch invariance up on a machine without cuBLASLt is told, and gets the same tokens from the own kernels.
TEST_F(EngineOnSimt, WithoutInvarianceAndWithoutALibrary) {
  const std::vector<Wish> wishes = {{story_prompt(40), greedy(3)}};
  std::string log;
  set_log_sink([&](LogLevel, const std::string& message) { log += message; });
  EngineOptions options = options_of("bfloat16");
  options.batch_invariant = false;
  const auto got = generate(options, wishes);
  set_log_sink({});
  EXPECT_NE(log.find("cuBLASLt"), std::string::npos) << log;
  EXPECT_EQ(got[0].token_ids, generate(options_of("bfloat16"), wishes)[0].token_ids);
}

// Sizes follow from the device, not from what is free: the second of two engines gets what the first one got.
TEST_F(EngineOnSimt, TwoEnginesAtOnceGetTheSizesOfOneAfterTheOther) {
  EngineOptions options = options_of();
  options.gpu_memory_utilization = 0.4;
  options.max_num_seqs = 64;
  options.max_model_len = 1024;
  cudart_emu::reset({.memory_bytes = size_t{512} << 20});
  const auto first = make_engine(options);
  const auto second = make_engine(options);
  EXPECT_GT(first->config().memory.num_blocks, 64);
  EXPECT_EQ(first->config().memory.num_blocks, second->config().memory.num_blocks);
  EXPECT_LE(
      first->config().memory.weight_bytes + first->config().memory.workspace_bytes + first->config().memory.kv_bytes(),
      int64_t{205} << 20);
}

std::string refusal_of(const EngineOptions& options) {
  try {
    make_engine(options);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "";
}

TEST_F(EngineOnSimt, TooLittleMemoryIsToldWithNumbersAndWaysOut) {
  EngineOptions options = options_of();
  options.max_model_len = 1024;
  cudart_emu::reset({.memory_bytes = size_t{128} << 20});
  options.gpu_memory_utilization = 0.15;
  std::string message = refusal_of(options);
  for (const char* part :
       {"max seq len (1024)", "Weights take 0.02 GiB", "workspace", "bytes a token", "of 0.12 GiB", "held by others",
        "Three ways out", "max_model_len", "gpu_memory_utilization", "free memory"}) {
    EXPECT_NE(message.find(part), std::string::npos) << part << " is not in: " << message;
  }
  // Enough for its share, but somebody else has taken it.
  options.gpu_memory_utilization = 0.9;
  const auto other = make_cuda_device(0)->allocate(RegionTag::weights, size_t{100} << 20);
  message = refusal_of(options);
  for (const char* part :
       {"not enough memory on the device \"simt\"", "0.10 GiB are held by others", "Three ways out"}) {
    EXPECT_NE(message.find(part), std::string::npos) << part << " is not in: " << message;
  }
  options.kv_cache_memory_bytes = int64_t{1} << 50;
  EXPECT_NE(refusal_of(options).find("not enough memory"), std::string::npos);
}

// Penalties and bad words of several tokens need the last token on the host: beside them nobody is planned ahead.
TEST_F(EngineOnSimt, RequestsThatReadTheirOutputGiveTheTokensOfTheCpu) {
  SamplingParams reader = greedy(6);
  reader.repetition_penalty = 1.3f;
  reader.presence_penalty = 0.4f;
  reader.bad_words_token_ids = {{700}, {300, 337}};
  const std::vector<Wish> wishes = {{story_prompt(12), reader}, {story_prompt(20), greedy(3)}};
  EngineOptions on_cpu = options_of();
  on_cpu.device = "cpu";
  const auto expected = generate(on_cpu, wishes);
  const auto got = generate(options_of(), wishes);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i].token_ids, expected[i].token_ids) << "request " << i;
}

// After token t one of 17 tokens that are 113 apart.
class Steps : public TokenConstraint {
 public:
  std::shared_ptr<void> start() override { return std::make_shared<int32_t>(0); }
  void fill_masks(std::span<MaskRow> rows) override {
    for (MaskRow& row : rows) {
      const int32_t last = row.output.empty() ? row.prompt.back() : row.output.back();
      for (int32_t i = 1; i <= 17; ++i) {
        const int32_t id = (last + 113 * i) % 2048;
        row.mask[static_cast<size_t>(id) / 32] |= 1u << id % 32;
      }
    }
  }
  void commit(std::span<CommittedToken> tokens) override {
    for (CommittedToken& token : tokens) token.is_last = ++*static_cast<int32_t*>(token.state) == 5;
  }
};

// Masks reach the device while the forward pass runs, and logits go to the host and back.
TEST_F(EngineOnSimt, HooksGiveTheTokensOfTheCpuAndTouchNobodyElse) {
  SamplingParams masked = greedy(8), processed = greedy(5);
  masked.constraint = std::make_shared<Steps>();
  processed.logits_processors.push_back([](auto, auto output, std::span<float> logits) {
    for (size_t id = output.size() % 2; id < logits.size(); id += 2) logits[id] = -1e4f;
  });
  const Wish free = {story_prompt(5), greedy(6)};
  const std::vector<Wish> wishes = {{story_prompt(6), masked}, free, {story_prompt(5), processed}};
  EngineOptions on_cpu = options_of();
  on_cpu.device = "cpu";
  const auto expected = generate(on_cpu, wishes);
  ASSERT_EQ(expected[0].token_ids[0].size(), 5u);
  EXPECT_EQ(expected[0].reason, FinishReason::stop);
  const auto engine = make_engine(options_of());
  const auto alone = generate(*engine, {free});  // from graphs, planned ahead
  const auto got = generate(*engine, wishes);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i].token_ids, expected[i].token_ids) << "request " << i;
  EXPECT_EQ(got[0].reason, FinishReason::stop);
  EXPECT_EQ(got[1], alone[0]);
  EXPECT_EQ(generate(*engine, {free})[0], alone[0]);  // rows that had masks have none now
  for (size_t t = 0; t < 5; ++t) EXPECT_EQ(got[2].token_ids[0][t] % 2, t % 2 == 0 ? 1 : 0);
}

TEST_F(EngineOnSimt, APrefixHitAndAPreemptionChangeNoBit) {
  const Wish wish = {story_prompt(40), greedy(12)};
  const auto plain = generate(options_of("bfloat16"), {wish});
  const auto engine = make_engine(options_of("bfloat16"));
  EXPECT_EQ(generate(*engine, {wish})[0], plain[0]);
  EXPECT_EQ(generate(*engine, {wish})[0], plain[0]);
  EXPECT_GE(engine->stats().cached_prompt_tokens, 32);
  EngineOptions small = options_of("bfloat16");
  small.max_model_len = 64;
  small.num_gpu_blocks_override = 7;  // two sequences of 40 tokens, and 52 of one of them
  small.enable_prefix_caching = false;
  const auto poor = make_engine(small);
  const auto both = generate(*poor, {wish, wish});
  EXPECT_GT(poor->stats().num_preemptions, 0);
  EXPECT_EQ(both[0], plain[0]);
  EXPECT_EQ(both[1], plain[0]);
}

// Stops are seen a step late, which nobody can tell from the output.
TEST_F(EngineOnSimt, StopsAreSeenLateAndChangeNothing) {
  const auto free_running = generate(options_of("bfloat16"), {{story_prompt(21), greedy(8)}});
  SamplingParams stopping = greedy(8);
  stopping.stop_token_ids = {free_running[0].token_ids[0][4]};
  const auto engine = make_engine(options_of("bfloat16"));
  const auto stopped = generate(*engine, {{story_prompt(21), stopping}, {story_prompt(6), greedy(9)}});
  const auto& whole = free_running[0].token_ids[0];
  EXPECT_EQ(stopped[0].token_ids[0], std::vector<int32_t>(whole.begin(), whole.begin() + 5));
  EXPECT_EQ(stopped[0].reason, FinishReason::stop);
  EXPECT_EQ(stopped[1].token_ids[0].size(), 9u);
  EXPECT_EQ(engine->stats().generated_tokens, 14);
}

TEST_F(EngineOnSimt, CancelledWhileAStepIsUnderWay) {
  const auto engine = make_engine(options_of("bfloat16"));
  const auto expected = generate(options_of("bfloat16"), {{story_prompt(6), greedy(5)}});
  Generated kept;
  const uint64_t cancelled = engine->submit(story_prompt(21), greedy(50), {}, Notify::finished);
  engine->submit(
      story_prompt(6), greedy(5),
      [&](const Delta& delta) {
        if (delta.finished == nullptr) return;
        kept.token_ids.push_back(delta.finished->completions[0].token_ids);
      },
      Notify::finished);
  engine->step();
  EXPECT_TRUE(engine->cancel(cancelled));
  while (engine->step()) {
  }
  EXPECT_EQ(kept.token_ids, expected[0].token_ids);
  EXPECT_EQ(engine->stats().num_running, 0);
}

// Every allocation of a start and of the steps behind it fails once: an error that names it, a request that ends with
// one, or a slower way to the same tokens; nothing is left behind, and the next engine works.
TEST_F(EngineOnSimt, OutOfMemoryAtEachAllocationInTurn) {
  SamplingParams large = greedy(2);
  large.logprobs = 40;
  large.prompt_logprobs = 40;
  for (int32_t id = 0; id < 1500; ++id) large.allowed_token_ids.push_back(id);
  large.allowed_token_ids.resize(20'000, 7);
  const std::vector<Wish> wishes = {{story_prompt(5), greedy(3)}, {story_prompt(4), large}};
  const auto expected = generate(options_of("bfloat16"), wishes);
  const cudart_emu::Live before = cudart_emu::live();
  set_log_sink([](LogLevel, const std::string&) {});
  int num_failed_starts = 0, num_failed_requests = 0, num_survived = 0;
  bool reached = true;
  for (int64_t n = 1; reached; ++n) {
    SCOPED_TRACE(str_cat("allocation ", n, " failed"));
    cudart_emu::fail_allocation_after(n);
    std::unique_ptr<Engine> engine;
    try {
      engine = make_engine(options_of("bfloat16"));
    } catch (const OutOfMemory& error) {
      EXPECT_NE(std::string(error.what()).find("memory"), std::string::npos);
      ++num_failed_starts;
    }
    if (engine != nullptr) {
      const auto got = generate(*engine, wishes);
      EXPECT_EQ(got[0], expected[0]);
      if (got[1].reason == FinishReason::error) {
        EXPECT_NE(got[1].error.find("no memory for the sampling parameters"), std::string::npos) << got[1].error;
        ++num_failed_requests;
      } else {
        EXPECT_EQ(got[1], expected[1]);
        ++num_survived;
      }
    }
    reached = !cudart_emu::faults_pending();
    engine.reset();
    cudart_emu::fail_allocation_after(0);
    EXPECT_EQ(cudart_emu::live(), before) << "something was left behind";
  }
  set_log_sink({});
  EXPECT_GT(num_failed_starts, 5);
  EXPECT_GT(num_failed_requests, 1);
  EXPECT_GT(num_survived, 1) << "a graph that cannot be captured costs no more than itself";
}

// A kernel that breaks the device ends the engine, which says so from then on; others in the process are not hurt once
// the device is made anew.
TEST_F(EngineOnSimt, ABrokenDeviceIsSaidClearly) {
  const auto engine = make_engine(options_of());
  engine->submit(story_prompt(5), greedy(6), {}, Notify::finished);
  EXPECT_TRUE(engine->step());
  cudart_emu::fail_kernel_after(3);
  const auto message = [&]() -> std::string {
    try {
      for (int i = 0; i < 10; ++i) engine->step();
    } catch (const DeviceError& error) {
      return error.what();
    }
    return "";
  };
  set_log_sink([](LogLevel, const std::string&) {});
  EXPECT_NE(message().find("illegal"), std::string::npos);
  const std::string later = message();
  EXPECT_NE(later.find("can do no more work"), std::string::npos) << later;
  set_log_sink({});
}

// A launch that is refused is no broken device: the step is done again.
TEST_F(EngineOnSimt, ARefusedLaunchLosesNothing) {
  const auto expected = generate(options_of("bfloat16"), {{story_prompt(5), greedy(4)}});
  const auto engine = make_engine(options_of("bfloat16"));
  Generated got;
  engine->submit(
      story_prompt(5), greedy(4),
      [&](const Delta& delta) {
        if (delta.finished == nullptr) return;
        got.token_ids.push_back(delta.finished->completions[0].token_ids);
      },
      Notify::finished);
  cudart_emu::fail_launch_after(7);
  set_log_sink([](LogLevel, const std::string&) {});
  EXPECT_THROW(engine->step(), DeviceError);
  set_log_sink({});
  while (engine->step()) {
  }
  EXPECT_EQ(got.token_ids, expected[0].token_ids);
}

}  // namespace
}  // namespace quire
