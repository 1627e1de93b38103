// Beam search on the CUDA device in emulation: forks copy blocks on the stream, rows get tokens from the host.
//
// Sequences are compared with the CPU's, bits with the same search in another engine, beside others, after failures.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "cuda/simt/cudart_emu/cudart_emu.h"
#include "engine_simt/demo_engine.h"

namespace quire {
namespace {

// Forks copy the first block until it becomes full; then it is shared.
constexpr int32_t kPromptLength = 13;
const BeamSearchParams kSearch = {.beam_width = 3, .max_tokens = 6, .ignore_eos = true};

EngineOptions options_of(const char* device = "cuda") {
  return {.dtype = "float32", .device = device, .max_model_len = 64, .max_num_seqs = 6, .max_num_batched_tokens = 64};
}

// Where bits are compared: the emulation multiplies bfloat16 four times as fast.
EngineOptions exact_options() {
  EngineOptions options = options_of();
  options.dtype = "bfloat16";
  return options;
}

struct Found {
  std::vector<std::vector<int32_t>> token_ids;
  std::vector<double> sums;
  FinishReason reason = FinishReason::none;
  bool operator==(const Found&) const = default;
};

DeltaCallback keep(Found& found) {
  return [&found](const Delta& delta) {
    if (delta.finished == nullptr) return;
    found = {.reason = delta.finish_reason};
    for (const Completion& completion : delta.finished->completions) {
      found.token_ids.push_back(completion.token_ids);
      found.sums.push_back(completion.cumulative_logprob);
    }
  };
}

void run(Engine& engine) {
  while (engine.step()) {
  }
}

Found search(const EngineOptions& options) {
  const std::unique_ptr<Engine> engine = make_engine(options);
  Found found;
  engine->submit_beam_search(story_prompt(kPromptLength), kSearch, keep(found));
  run(*engine);
  EXPECT_EQ(engine->stats().num_free_blocks + engine->stats().num_cached_blocks, engine->stats().num_blocks);
  return found;
}

class BeamsOnSimt : public testing::Test {
 protected:
  void SetUp() override { cudart_emu::reset(); }
  void TearDown() override { cudart_emu::reset(); }
};

TEST_F(BeamsOnSimt, FindsWhatTheCpuFinds) {
  const Found expected = search(options_of("cpu"));
  const Found found = search(options_of());
  ASSERT_EQ(expected.token_ids.size(), 3u);
  EXPECT_EQ(found.token_ids, expected.token_ids);
  for (size_t i = 0; i < 3; ++i) EXPECT_NEAR(found.sums[i], expected.sums[i], 1e-3);
}

TEST_F(BeamsOnSimt, MatesAndMemoryChangeNoBit) {
  const Found expected = search(exact_options());
  EngineOptions short_of_blocks = exact_options();
  short_of_blocks.num_gpu_blocks_override = 4;  // one sequence of max_model_len
  EXPECT_EQ(search(short_of_blocks), expected);

  // Two steps of the mates are under way when the searches come.
  const std::unique_ptr<Engine> engine = make_engine(exact_options());
  const SamplingParams drawn = {.temperature = 0.9f, .seed = 3, .ignore_eos = true, .max_tokens = 10, .logprobs = 0};
  Found mate, mate_alone, first, second;
  engine->submit(story_prompt(9, 1), drawn, keep(mate), Notify::finished);
  for (int i = 0; i < 3; ++i) engine->step();
  engine->submit_beam_search(story_prompt(kPromptLength), kSearch, keep(first));
  engine->step();
  engine->submit_beam_search(story_prompt(kPromptLength), kSearch, keep(second));
  run(*engine);
  EXPECT_EQ(first, expected);
  EXPECT_EQ(second, expected);
  const std::unique_ptr<Engine> other = make_engine(exact_options());
  other->submit(story_prompt(9, 1), drawn, keep(mate_alone), Notify::finished);
  run(*other);
  EXPECT_EQ(mate, mate_alone);
}

TEST_F(BeamsOnSimt, ACancelledSearchGivesItsBlocksBack) {
  const std::unique_ptr<Engine> engine = make_engine(exact_options());
  for (int num_steps = 0; num_steps < 5; ++num_steps) {
    Found found;
    const uint64_t id = engine->submit_beam_search(story_prompt(kPromptLength), kSearch, keep(found));
    for (int i = 0; i < num_steps; ++i) engine->step();
    EXPECT_TRUE(engine->cancel(id));
    run(*engine);
    EXPECT_EQ(found.reason, FinishReason::abort);
    EXPECT_EQ(engine->stats().num_free_blocks + engine->stats().num_cached_blocks, engine->stats().num_blocks);
  }
}

}  // namespace
}  // namespace quire
