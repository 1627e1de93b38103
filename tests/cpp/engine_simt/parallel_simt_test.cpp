// Ranks that share one emulated GPU: the collectives of comm/peer.h, and engines of two and four ranks.
#include <gtest/gtest.h>

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "comm/peer.h"
#include "engine_simt/ranks.h"
#include "model/tiny_families.h"

namespace quire {
namespace {

Devices ranks_of_one_gpu(int num_ranks) { return devices_of(std::vector<int>(static_cast<size_t>(num_ranks), 0)); }

// ------------------------------------------------------------------------------------------------------ collectives

class Peers : public ::testing::TestWithParam<int> {
 protected:
  Peers() {
    std::vector<Device*> all;
    for (const auto& device : devices_) all.push_back(device.get());
    for (Device* device : all) device->share_memory_with(all);
    group_ = make_peer_group(all, 60.0);
  }
  template <typename Body>
  void run_ranks(const Body& body) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < num_ranks_; ++rank) threads.emplace_back([&, rank] { body(rank); });
    for (std::thread& thread : threads) thread.join();
  }
  Device& device(int rank) { return *devices_[static_cast<size_t>(rank)]; }

  const int num_ranks_ = GetParam();
  const Devices devices_ = ranks_of_one_gpu(num_ranks_);
  std::unique_ptr<CommunicatorGroup> group_;
};

// Both ways of sharing the work, several times in turn, with a norm behind: the order of the sum, and its bits.
TEST_P(Peers, AllReduce) {
  constexpr int64_t kDim = 132, kTurns = 3;
  for (const int64_t rows : {int64_t{3}, int64_t{520}}) {
    const size_t count = static_cast<size_t>(rows * kDim);
    std::mt19937 random(7);
    std::uniform_real_distribution<float> values(-3.0f, 3.0f);
    std::vector<std::vector<float>> partials(static_cast<size_t>(num_ranks_), std::vector<float>(count));
    for (auto& partial : partials) {
      for (float& value : partial) value = values(random);
    }
    std::vector<float> expected(count, 0.5f), weight(kDim, 2.0f);
    for (int64_t turn = 0; turn < kTurns; ++turn) {
      for (size_t i = 0; i < count; ++i) {
        float sum = partials[0][i];
        for (size_t rank = 1; rank < partials.size(); ++rank) sum += partials[rank][i];
        expected[i] += sum;
      }
    }
    std::vector<std::vector<float>> outs(partials.size(), std::vector<float>(count)), normed = outs;
    run_ranks([&](int rank) {
      Device& own = device(rank);
      const auto index = static_cast<size_t>(rank);
      const auto region = own.allocate(RegionTag::workspace, (4 * count + kDim) * sizeof(float));
      auto* const memory = reinterpret_cast<float*>(region->data());
      float *out = memory + 2 * count, *result = out + count, *norm_weight = result + count;
      const std::vector<float> half(count, 0.5f);
      own.copy_to_device(out, half.data(), count * sizeof(float));
      own.copy_to_device(norm_weight, weight.data(), kDim * sizeof(float));
      for (int64_t turn = 0; turn < kTurns; ++turn) {
        float* const partial = memory + turn % 2 * static_cast<int64_t>(count);
        own.copy_to_device(partial, partials[index].data(), count * sizeof(float));
        group_->rank(rank).all_reduce({.partial = partial,
                                       .out = out,
                                       .rows = rows,
                                       .dim = kDim,
                                       .accumulate = true,
                                       .has_norm = true,
                                       .norm_weight = norm_weight,
                                       .eps = 1e-5f,
                                       .normed = result},
                                      own.stream());
      }
      own.copy_to_host(outs[index].data(), out, count * sizeof(float));
      own.copy_to_host(normed[index].data(), result, count * sizeof(float));
      group_->rank(rank).barrier(own.stream());  // before the memory goes
      own.synchronize();
    });
    for (size_t rank = 0; rank < outs.size(); ++rank) {
      EXPECT_EQ(outs[rank], expected) << rows << " rows, rank " << rank;  // exact
      EXPECT_EQ(normed[rank], normed[0]) << rows << " rows, rank " << rank;
      double square = 0.0;
      for (int64_t i = 0; i < kDim; ++i) square += std::pow(normed[rank][static_cast<size_t>(i)], 2);
      EXPECT_NEAR(square / kDim, 4.0, 1e-3);
    }
    EXPECT_EQ(is_two_shot(num_ranks_, rows, kDim), num_ranks_ > 2 && rows > 3);
  }
}

TEST_P(Peers, GatherAndBroadcast) {
  constexpr int64_t kRows = 5, kColumns = 33;
  const int64_t stride = kColumns * num_ranks_;
  std::vector<float> gathered(static_cast<size_t>(kRows * stride));
  std::vector<std::vector<int32_t>> told(static_cast<size_t>(num_ranks_), std::vector<int32_t>(4));
  run_ranks([&](int rank) {
    Device& own = device(rank);
    const auto index = static_cast<size_t>(rank);
    const auto region = own.allocate(RegionTag::workspace, 4096 + gathered.size() * sizeof(float));
    auto* const part = reinterpret_cast<float*>(region->data());
    float* const out = part + 1024;
    std::vector<float> values;
    for (int64_t i = 0; i < kRows * kColumns; ++i) values.push_back(static_cast<float>(1000 * rank + i));
    own.copy_to_device(part, values.data(), values.size() * sizeof(float));
    group_->rank(rank).gather_columns({.part = part,
                                       .rows = kRows,
                                       .columns = kColumns,
                                       .first_column = kColumns * rank,
                                       .out = rank == 0 ? out : nullptr,
                                       .out_stride = stride},
                                      own.stream());
    if (rank == 0) own.copy_to_host(gathered.data(), out, gathered.size() * sizeof(float));
    const std::vector<int32_t> tokens = {rank, 10 + rank, 20 + rank, 30 + rank};
    own.copy_to_device(part, tokens.data(), 4 * sizeof(int32_t));
    group_->rank(rank).broadcast(part, 4 * sizeof(int32_t), own.stream());
    own.copy_to_host(told[index].data(), part, 4 * sizeof(int32_t));
    group_->rank(rank).barrier(own.stream());
    own.synchronize();
  });
  for (const auto& tokens : told) EXPECT_EQ(tokens, (std::vector<int32_t>{0, 10, 20, 30}));
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t column = 0; column < stride; ++column) {
      const auto expected = static_cast<float>(1000 * (column / kColumns) + row * kColumns + column % kColumns);
      ASSERT_EQ(gathered[static_cast<size_t>(row * stride + column)], expected) << row << ", " << column;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, Peers, ::testing::Values(2, 3, 4));

// ---------------------------------------------------------------------------------------------------------- engines

// All ranks on one device.
std::unique_ptr<Engine> parallel_engine(const std::filesystem::path& folder, const EngineOptions& options,
                                        int num_ranks, const Checkpoint* checkpoint) {
  return engine_of_ranks(folder, options, std::vector<int>(static_cast<size_t>(num_ranks), 0), checkpoint);
}

std::vector<Generated> generate_demo(const EngineOptions& options, int num_ranks, const std::vector<Wish>& wishes) {
  const std::unique_ptr<Checkpoint> checkpoint = open_safetensors(kDemo);
  return generate(*parallel_engine(kDemo, options, num_ranks, checkpoint.get()), wishes);
}

TEST(ParallelOnSimt, GreedyTokensOfOneRank) {
  std::vector<Wish> wishes = {{story_prompt(5), greedy(4)}, {story_prompt(11, 1), greedy(2)}};
  wishes[1].params.prompt_logprobs = 1;
  const std::vector<Generated> one = generate_demo(demo_options(), 1, wishes);
  const std::vector<Generated> two = generate_demo(demo_options(), 2, wishes);
  expect_same_tokens(one, two, 1e-3f);
  EXPECT_EQ(one[1].prompt_ids, two[1].prompt_ids);
  EXPECT_EQ(two, generate_demo(demo_options(), 2, wishes));  // the same bits every time
}

// More ranks than key/value heads. Sums whose rows are shared out are Peers', since the emulation takes minutes for a
// prompt that long.
TEST(ParallelOnSimt, FourRanks) {
  const std::vector<Wish> wishes = {{story_prompt(7), greedy(3)}};
  expect_same_tokens(generate_demo(demo_options(), 1, wishes), generate_demo(demo_options(), 4, wishes), 1e-3f);
}

// The rows of all ranks get the tokens that the first one draws, also where the host has a say.
TEST(ParallelOnSimt, DrawnTokensAndLogitsProcessors) {
  SamplingParams drawn = {.temperature = 0.9f, .top_p = 0.95f, .seed = 7, .ignore_eos = true, .max_tokens = 6};
  SamplingParams processed = greedy(4);
  processed.logits_processors = {[](auto, auto, std::span<float> logits) {
    for (float& logit : logits) logit = -logit;
  }};
  const std::vector<Wish> wishes = {{story_prompt(9), drawn}, {story_prompt(12, 3), processed}};
  expect_same_tokens(generate_demo(demo_options(), 1, wishes), generate_demo(demo_options(), 2, wishes), 1e-3f);
}

TEST(ParallelOnSimt, SpeculationWithNgrams) {
  EngineOptions options = demo_options();
  options.speculative_method = "ngram";
  options.num_speculative_tokens = 2;
  const std::vector<Wish> wishes = {{story_prompt(9), greedy(8)}};
  expect_same_tokens(generate_demo(options, 1, wishes), generate_demo(options, 2, wishes), 1e-3f);
}

TEST(ParallelOnSimt, EveryFamily) {
  const auto folder = std::filesystem::temp_directory_path() / str_cat("quire_parallel_simt_", ::getpid());
  std::filesystem::create_directories(folder);
  for (const test::TinyFamily& family : test::tiny_families()) {
    SCOPED_TRACE(family.name);
    Json config = family.config;
    config[family.name == "gpt2" ? "n_head" : "num_attention_heads"] = 8;
    if (family.name == "gpt2") config["n_embd"] = 72;
    if (family.name == "opt_projected") config["hidden_size"] = 72;
    std::ofstream(folder / "config.json") << config.dump();
    const auto run = [&](int num_ranks) {
      const test::RandomCheckpoint checkpoint(arch_registry().build(config), test::Stored::f32);
      const EngineOptions options = {
          .dtype = "float32", .max_model_len = 48, .max_num_seqs = 4, .max_num_batched_tokens = 16};
      const auto engine = parallel_engine(folder, options, num_ranks, &checkpoint);
      return generate(*engine, {{{5, 9, 2, 100, 7, 33, 250, 1, 8}, greedy(4)}, {{17, 3}, greedy(4)}});
    };
    expect_same_tokens(run(1), run(2), 1e-3f);
  }
  std::filesystem::remove_all(folder);
}

TEST(ParallelOnSimt, OffloadedLayersAreRefused) {
  EngineOptions options = demo_options();
  options.cpu_offload_gb = 1.0;
  const std::unique_ptr<Checkpoint> checkpoint = open_safetensors(kDemo);
  EXPECT_THROW(parallel_engine(kDemo, options, 2, checkpoint.get()), NotSupported);
}

}  // namespace
}  // namespace quire
