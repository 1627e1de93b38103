// Ranks on several emulated GPUs that sum with NCCL, of which kernels_simt/stand_in/nccl_ring.cpp is one: the
// collectives of comm/library.h, engines, and what becomes of both when a call fails.
#include <gtest/gtest.h>

#include <dlfcn.h>

#include <cuda_runtime_api.h>

#include <cmath>
#include <functional>
#include <random>
#include <thread>

#include "comm/library.h"
#include "cuda/comm/nccl.h"
#include "cuda/simt/cudart_emu/cudart_emu.h"
#include "engine/pooling_engine.h"
#include "engine_simt/ranks.h"
#include "kernels_simt/stand_in/nccl_ring.h"

namespace quire {
namespace {

constexpr int kSystemError = nccl::kSystemError;

bool enqueue_on_all(std::span<void* const> streams, const std::function<void(size_t)>& work) {
  std::vector<cudaEvent_t> events(streams.size());
  bool is_fine = true;
  const auto note = [&](cudaError_t error) { is_fine = is_fine && error == cudaSuccess; };
  for (size_t i = 0; i < streams.size(); ++i) {
    note(cudaEventCreateWithFlags(&events[i], cudaEventDisableTiming));
    note(cudaEventRecord(events[i], static_cast<cudaStream_t>(streams[i])));
  }
  for (size_t i = 0; i < streams.size(); ++i) {
    const auto stream = static_cast<cudaStream_t>(streams[i]);
    for (const cudaEvent_t event : events) note(cudaStreamWaitEvent(stream, event, 0));
    note(cudart_emu::enqueue(stream, [work, i] { work(i); }));
  }
  for (const cudaEvent_t event : events) static_cast<void>(cudaEventDestroy(event));
  return is_fine;
}

// What the process uses as NCCL while a test runs, on a machine of eight GPUs.
class WithNccl : public testing::Test {
 protected:
  void SetUp() override {
    cudart_emu::reset({.num_devices = 8});
    static const cuda::NcclLibrary found =
        cuda::find_nccl({.takes_loaded = false, .named = QUIRE_NCCL_RING, .asks_loader = false});
    ASSERT_TRUE(found.is_found) << found.status;
    void* const library = dlopen(QUIRE_NCCL_RING, RTLD_NOW | RTLD_LOCAL);
    const auto control =
        reinterpret_cast<decltype(&quire_nccl_ring_control)>(dlsym(library, "quire_nccl_ring_control"));
    ASSERT_NE(control, nullptr);
    ring_ = control();
    ring_->reset({.enqueue_on_all = enqueue_on_all});
    cuda::use_nccl(&found.functions, found.status);
  }
  void TearDown() override {
    EXPECT_EQ(ring_->counts().communicators, 0) << "left behind";
    cuda::use_nccl(nullptr, "no NCCL: a test is over");
    cudart_emu::reset();
  }

  const nccl_ring::Control* ring_ = nullptr;
};

std::vector<int> first_devices(int count) {
  std::vector<int> indices;
  for (int i = 0; i < count; ++i) indices.push_back(i);
  return indices;
}

// ------------------------------------------------------------------------------------------------------ collectives

class Ranks {
 public:
  explicit Ranks(int count, double time_limit = 60.0, size_t gather_bytes = kGatherBytes)
      : devices_(devices_of(first_devices(count))) {
    std::vector<Device*> all;
    for (const auto& device : devices_) all.push_back(device.get());
    group_ = make_library_group(all, time_limit, gather_bytes);
    for (Device* device : all) regions_.push_back(device->allocate(RegionTag::workspace, kRegionFloats * 4));
  }

  // Runs body(rank) on a thread a rank; what it throws is its message, of which the group is told as an engine does.
  template <typename Body>
  std::vector<std::string> run(const Body& body) {
    std::vector<std::string> errors(devices_.size());
    std::vector<std::thread> threads;
    for (size_t rank = 0; rank < devices_.size(); ++rank) {
      threads.emplace_back([&, rank] {
        try {
          body(static_cast<int>(rank));
        } catch (const std::exception& error) {
          errors[rank] = error.what();
          group_->abort(error.what());
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    return errors;
  }
  Device& device(int rank) { return *devices_[static_cast<size_t>(rank)]; }
  Stream stream(int rank) { return device(rank).stream(); }
  Communicator& operator[](int rank) { return group_->rank(rank); }
  CommunicatorGroup& group() { return *group_; }
  float* memory(int rank) { return reinterpret_cast<float*>(regions_[static_cast<size_t>(rank)]->data()); }
  void put(int rank, int64_t at, const std::vector<float>& values) {
    device(rank).copy_to_device(memory(rank) + at, values.data(), values.size() * sizeof(float));
  }
  std::vector<float> get(int rank, int64_t at, int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    device(rank).copy_to_host(values.data(), memory(rank) + at, values.size() * sizeof(float));
    return values;
  }

 private:
  static constexpr size_t kRegionFloats = size_t{1} << 16;
  const Devices devices_;
  std::unique_ptr<CommunicatorGroup> group_;
  std::vector<std::unique_ptr<Region>> regions_;
};

std::vector<float> random_numbers(int64_t count, int seed) {
  std::mt19937 random(static_cast<uint32_t>(seed));
  std::uniform_real_distribution<float> values(-3.0f, 3.0f);
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& number : numbers) number = values(random);
  return numbers;
}

class NcclCollectives : public WithNccl, public testing::WithParamInterface<int> {
 protected:
  const int num_ranks_ = GetParam();
};

// Into `out` alone, then twice onto it, without a wait of the host in between.
TEST_P(NcclCollectives, AllReduce) {
  constexpr int64_t kRows = 5, kDim = 132, kCount = kRows * kDim;
  std::vector<std::vector<float>> outs(static_cast<size_t>(num_ranks_));
  std::vector<float> in_order(kCount);  // of the ranks
  std::vector<double> exact(kCount);
  for (int turn = 0; turn < 3; ++turn) {
    std::vector<float> sum = random_numbers(kCount, 10 * turn);
    for (int rank = 1; rank < num_ranks_; ++rank) {
      const std::vector<float> other = random_numbers(kCount, 10 * turn + rank);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += other[i];
    }
    for (int rank = 0; rank < num_ranks_; ++rank) {
      const std::vector<float> terms = random_numbers(kCount, 10 * turn + rank);
      for (size_t i = 0; i < sum.size(); ++i) exact[i] += double{terms[i]};
    }
    for (size_t i = 0; i < sum.size(); ++i) in_order[i] = turn == 0 ? sum[i] : in_order[i] + sum[i];
  }
  Ranks ranks(num_ranks_);
  const std::vector<std::string> errors = ranks.run([&](int rank) {
    for (int turn = 0; turn < 3; ++turn) ranks.put(rank, turn * kCount, random_numbers(kCount, 10 * turn + rank));
    float* const memory = ranks.memory(rank);
    for (int turn = 0; turn < 3; ++turn) {
      ranks[rank].all_reduce({.partial = memory + turn * kCount,
                              .out = memory + 3 * kCount,
                              .rows = kRows,
                              .dim = kDim,
                              .accumulate = turn > 0},
                             ranks.stream(rank));
    }
    outs[static_cast<size_t>(rank)] = ranks.get(rank, 3 * kCount, kCount);
    ranks[rank].barrier(ranks.stream(rank));
    ranks.device(rank).synchronize();
  });
  for (size_t rank = 0; rank < outs.size(); ++rank) {
    EXPECT_EQ(errors[rank], "");
    EXPECT_EQ(outs[rank], outs[0]) << "rank " << rank;
  }
  for (size_t i = 0; i < exact.size(); ++i) ASSERT_NEAR(outs[0][i], exact[i], 1e-5) << i;
  // Two numbers have one sum; three do not, and the ring has an order of its own.
  if (num_ranks_ == 2) {
    EXPECT_EQ(outs[0], in_order);
  } else {
    EXPECT_NE(outs[0], in_order);
  }
  EXPECT_EQ(ring_->counts().groups, 3);
  EXPECT_FALSE(ranks[0].fuses_norm());
}

// Blocks of two rows, and one of a single row at the end.
TEST_P(NcclCollectives, GatherAndBroadcast) {
  constexpr int64_t kRows = 5, kColumns = 33;
  const int64_t stride = kColumns * num_ranks_ + 3, others = kColumns * (num_ranks_ - 1);
  Ranks ranks(num_ranks_, 60.0, static_cast<size_t>(2 * others + others / 2) * sizeof(float));
  std::vector<float> gathered;
  std::vector<std::vector<float>> told(static_cast<size_t>(num_ranks_));
  const std::vector<std::string> errors = ranks.run([&](int rank) {
    std::vector<float> values;
    for (int64_t i = 0; i < kRows * kColumns; ++i) values.push_back(static_cast<float>(1000 * rank + i));
    ranks.put(rank, 0, values);
    ranks.put(rank, 4096, std::vector<float>(static_cast<size_t>(kRows * stride), -1.0f));
    ranks[rank].gather_columns({.part = ranks.memory(rank),
                                .rows = kRows,
                                .columns = kColumns,
                                .first_column = kColumns * rank,
                                .out = rank == 0 ? ranks.memory(0) + 4096 : nullptr,
                                .out_stride = stride},
                               ranks.stream(rank));
    // Over what was sent, which must have gone by then.
    ranks[rank].broadcast(ranks.memory(rank), 4 * sizeof(float), ranks.stream(rank));
    if (rank == 0) gathered = ranks.get(0, 4096, kRows * stride);
    told[static_cast<size_t>(rank)] = ranks.get(rank, 0, 5);
    ranks[rank].barrier(ranks.stream(rank));
    ranks.device(rank).synchronize();
  });
  for (size_t rank = 0; rank < told.size(); ++rank) {
    EXPECT_EQ(errors[rank], "");
    EXPECT_EQ(told[rank], (std::vector<float>{0, 1, 2, 3, static_cast<float>(1000 * rank + 4)}));
  }
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t column = 0; column < stride; ++column) {
      const auto expected = static_cast<float>(1000 * (column / kColumns) + row * kColumns + column % kColumns);
      ASSERT_EQ(gathered[static_cast<size_t>(row * stride + column)], column < kColumns * num_ranks_ ? expected : -1.0f)
          << row << ", " << column;
    }
  }
  EXPECT_EQ(ring_->counts().groups, 3 + 1);
}

// The second rank's stream reads what the first one's writes, which nobody has waited for.
TEST_P(NcclCollectives, BarrierOrdersStreams) {
  Ranks ranks(num_ranks_);
  std::vector<std::vector<float>> read(static_cast<size_t>(num_ranks_));
  for (int turn = 1; turn < 4; ++turn) {
    const std::vector<std::string> errors = ranks.run([&](int rank) {
      const auto value = static_cast<std::byte>(turn);
      if (rank == 0) ranks.device(0).fill_async(ranks.memory(0), value, 64, ranks.stream(0));
      ranks[rank].barrier(ranks.stream(rank));
      if (rank != 0) ranks.device(rank).copy_async(ranks.memory(rank), ranks.memory(0), 64, ranks.stream(rank));
      ranks[rank].barrier(ranks.stream(rank));
      read[static_cast<size_t>(rank)] = ranks.get(rank, 0, 16);
    });
    for (size_t rank = 0; rank < errors.size(); ++rank) {
      EXPECT_EQ(errors[rank], "");
      EXPECT_EQ(reinterpret_cast<const unsigned char*>(read[rank].data())[63], turn) << "rank " << rank;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, NcclCollectives, testing::Values(2, 3, 4));

// ---------------------------------------------------------------------------------------------------- what goes wrong

class NcclFailures : public WithNccl {
 protected:
  void SetUp() override {
    WithNccl::SetUp();
    ranks_ = std::make_unique<Ranks>(2, 0.5);
  }
  void TearDown() override {
    ranks_.reset();
    WithNccl::TearDown();
  }
  std::vector<std::string> sum() {
    return ranks_->run([&](int rank) { sum_of(rank); });
  }
  void sum_of(int rank) {
    ranks_->put(rank, 0, {1.0f + static_cast<float>(rank)});
    float* const memory = ranks_->memory(rank);
    (*ranks_)[rank].all_reduce({.partial = memory, .out = memory + 1, .rows = 1, .dim = 1}, ranks_->stream(rank));
    EXPECT_EQ(ranks_->get(rank, 1, 1), (std::vector<float>{3.0f}));
  }
  // After an error that every rank knows of: as new, with communicators of its own.
  void expect_as_new(int num_inits) {
    EXPECT_EQ(ring_->counts().communicators, 0);
    ranks_->group().reset();
    EXPECT_EQ(sum(), (std::vector<std::string>{"", ""}));
    EXPECT_EQ(ring_->counts().communicators, 2);
    EXPECT_EQ(ring_->counts().inits, num_inits);
  }

  std::unique_ptr<Ranks> ranks_;
};

TEST_F(NcclFailures, OfOneRanksCall) {
  EXPECT_EQ(sum(), (std::vector<std::string>{"", ""}));
  ring_->fail("ncclAllReduce", 1, 1, kSystemError);
  const std::vector<std::string> errors = sum();
  EXPECT_EQ(errors[0], "given up: rank 1 failed in all_reduce");
  EXPECT_EQ(
      errors[1],
      "ncclAllReduce of rank 1 (device 1) failed: some error (stand-in) (ncclResult_t 2): the stand-in was told to "
      "fail ncclAllReduce");
  EXPECT_EQ(ring_->counts().aborts, 2);
  expect_as_new(2);
}

TEST_F(NcclFailures, OfAllRanksCalls) {
  for (const char* call : {"ncclGroupEnd", "ncclCommInitAll"}) {
    ring_->fail(call, 0, 1, kSystemError);
    const std::vector<std::string> errors = sum();
    for (const std::string& error : errors) {
      const std::string expected = str_cat(call, " of all 2 ranks failed: some error (stand-in)");
      EXPECT_EQ(error.rfind(expected, 0), 0u) << error;
    }
    EXPECT_EQ(ring_->counts().communicators, 0);
    ranks_->group().reset();  // the next sum opens the library again
  }
  EXPECT_EQ(sum(), (std::vector<std::string>{"", ""}));
}

TEST_F(NcclFailures, ThatNcclFindsLater) {
  ring_->fail("ncclCommGetAsyncError", 0, 1, nccl::kRemoteError);
  const std::vector<std::string> errors = sum();
  EXPECT_EQ(errors[0].rfind("an earlier call of rank 0 (device 0) failed: some error (stand-in) (ncclResult_t 6)", 0),
            0u)
      << errors[0];
  EXPECT_EQ(errors[1], "given up: rank 0 failed in all_reduce");
  expect_as_new(2);
}

TEST_F(NcclFailures, OfARankThatDoesNotCome) {
  const std::vector<std::string> errors = ranks_->run([&](int rank) {
    if (rank == 0) sum_of(0);
  });
  EXPECT_EQ(errors[0], "rank 1 of 2 did not come to all_reduce within 0.5 s (collective_timeout)");
  EXPECT_EQ(ring_->counts().groups, 0);  // nothing waits on a stream for it
  expect_as_new(2);
}

TEST_F(NcclFailures, OfShapesThatDiffer) {
  const std::vector<std::string> errors = ranks_->run([&](int rank) {
    float* const memory = ranks_->memory(rank);
    (*ranks_)[rank].all_reduce({.partial = memory, .out = memory + 8, .rows = 1, .dim = 1 + rank},
                               ranks_->stream(rank));
  });
  EXPECT_NE(errors[1].find("rank 1 reduces 1 rows of 2, rank 0 1 of 1"), std::string::npos) << errors[1];
  expect_as_new(2);
}

// ---------------------------------------------------------------------------------------------------------- engines

class NcclEngines : public WithNccl {
 protected:
  std::unique_ptr<Engine> engine_of(int num_ranks, bool by_nccl = true) {
    EngineOptions options = demo_options();
    options.disable_custom_all_reduce = by_nccl;
    options.batch_invariant = num_ranks <= 2;
    return engine_of_ranks(kDemo, options, first_devices(num_ranks), checkpoint_.get());
  }
  const std::unique_ptr<Checkpoint> checkpoint_ = open_safetensors(kDemo);
};

TEST_F(NcclEngines, GreedyTokensOfOneRank) {
  std::vector<Wish> wishes = {{story_prompt(5), greedy(4)}, {story_prompt(11, 1), greedy(2)}};
  wishes[1].params.prompt_logprobs = 1;
  const std::vector<Generated> one = generate(*engine_of(1), wishes);
  EXPECT_EQ(ring_->counts().groups, 0);
  const std::vector<Generated> two = generate(*engine_of(2), wishes);
  EXPECT_GT(ring_->counts().groups, 0);
  expect_same_tokens(one, two, 1e-3f);
  EXPECT_EQ(one[1].prompt_ids, two[1].prompt_ids);
  // Sums of two have one order, so these are the bits of quire's own kernel, and no batch mate changes them.
  const int groups = ring_->counts().groups;
  EXPECT_EQ(two, generate(*engine_of(2, false), wishes));
  EXPECT_EQ(ring_->counts().groups, groups);
  EXPECT_EQ(two[0], generate(*engine_of(2), {wishes[0]})[0]);
}

TEST_F(NcclEngines, FourRanks) {
  const std::vector<Wish> wishes = {{story_prompt(7), greedy(3)}};
  const std::vector<Generated> one = generate(*engine_of(1), wishes);
  expect_same_tokens(one, generate(*engine_of(4), wishes), 1e-3f);
  EXPECT_GT(ring_->counts().groups, 0);
  EXPECT_EQ(ring_->counts().inits, 1);
}

// The step that failed is computed again, and so is what comes after it.
TEST_F(NcclEngines, GoOnAfterACallThatFailed) {
  const Wish wish = {story_prompt(5), greedy(4)};
  const std::unique_ptr<Engine> engine = engine_of(2);
  const std::vector<Generated> expected = generate(*engine, {wish});
  std::vector<int32_t> tokens;
  const auto keep = [&](const Delta& delta) {
    if (delta.finished != nullptr) tokens = delta.finished->completions.at(0).token_ids;
  };
  engine->submit(wish.prompt, wish.params, keep, Notify::finished);
  ring_->fail("ncclAllReduce", 1, 7, kSystemError);
  std::string error;
  for (bool more = true; more;) {
    try {
      more = engine->step();
    } catch (const DeviceError& it) {
      EXPECT_EQ(error, "") << "only once";
      error = it.what();
      EXPECT_EQ(ring_->counts().communicators, 0);
      EXPECT_EQ(ring_->counts().aborts, 2);
    }
  }
  EXPECT_EQ(error.rfind("rank 1 of 2 failed in run: ncclAllReduce of rank 1 (device 1) failed: some error", 0), 0u)
      << error;
  EXPECT_EQ(tokens, expected[0].token_ids[0]);
  EXPECT_EQ(generate(*engine, {wish}), expected);
  EXPECT_EQ(ring_->counts().communicators, 2);
}

TEST_F(NcclEngines, PoolToo) {
  const auto engine_of = [&](bool by_nccl) {
    EngineOptions options = demo_options();
    options.device = "simt:0,1";
    options.tensor_parallel_size = 2;
    options.disable_custom_all_reduce = by_nccl;
    Devices devices = devices_of({0, 1});
    PoolingConfig config = resolve_pooling_config(kDemo, options, {.pooling_type = "MEAN"}, *devices.front());
    return std::make_unique<PoolingEngine>(std::move(config), std::move(devices), checkpoint_.get());
  };
  const auto vector_of = [](PoolingEngine& engine) {
    std::vector<float> vector;
    engine.submit({.token_ids = story_prompt(9)}, {}, [&](PoolingOutput&& output) { vector = std::move(output.data); });
    EXPECT_TRUE(engine.step());
    return vector;
  };
  const std::vector<float> expected = vector_of(*engine_of(false));
  ASSERT_FALSE(expected.empty());
  EXPECT_EQ(ring_->counts().groups, 0);
  const std::unique_ptr<PoolingEngine> engine = engine_of(true);
  EXPECT_EQ(vector_of(*engine), expected);
  EXPECT_GT(ring_->counts().groups, 0);
  ring_->fail("ncclAllReduce", 1, 3, kSystemError);
  std::vector<float> later;
  engine->submit({.token_ids = story_prompt(9)}, {}, [&](PoolingOutput&& output) { later = std::move(output.data); });
  try {
    engine->step();
    ADD_FAILURE() << "no error";
  } catch (const DeviceError& error) {
    EXPECT_EQ(std::string(error.what()).rfind("rank 1 of 2 failed in run: ncclAllReduce of rank 1", 0), 0u)
        << error.what();
  }
  EXPECT_TRUE(engine->step());  // the step that failed is computed again
  EXPECT_EQ(later, expected);
}

// Nothing is left of an engine that cannot be made.
TEST_F(NcclEngines, ThatNcclDoesNotOpenAreNotMade) {
  ring_->fail("ncclCommInitAll", 0, 1, kSystemError);
  try {
    engine_of(2);
    ADD_FAILURE() << "no error";
  } catch (const DeviceError& error) {
    EXPECT_EQ(std::string(error.what()).rfind("ncclCommInitAll of all 2 ranks failed: some error", 0), 0u)
        << error.what();
  }
  EXPECT_EQ(cudart_emu::live(), cudart_emu::Live{});
}

TEST_F(NcclEngines, AreRefusedByName) {
  EngineOptions options = demo_options();
  options.disable_custom_all_reduce = true;
  const auto refusal = [&](const std::vector<int>& devices) -> std::string {
    try {
      engine_of_ranks(kDemo, options, devices, checkpoint_.get());
    } catch (const InvalidArgument& error) {
      return str_cat("argument: ", error.what());
    } catch (const NotSupported& error) {
      return str_cat("not there: ", error.what());
    }
    return "no error";
  };
  EXPECT_EQ(refusal({0, 1, 1}),
            "argument: disable_custom_all_reduce=true sums with NCCL, which has one rank a device, and "
            "device=\"simt:0,1,1\" has several ranks on one; leave disable_custom_all_reduce false there");
  EXPECT_EQ(refusal({0, 1, 2, 3}),
            "argument: disable_custom_all_reduce=true with tensor_parallel_size=4 sums with NCCL in an order that "
            "depends on the batch, which batch_invariant=true (the default) forbids; set batch_invariant to false too, "
            "or leave disable_custom_all_reduce false");
  cuda::use_nccl(nullptr, cuda::find_nccl({.takes_loaded = false, .named = "/nowhere", .asks_loader = false}).status);
  EXPECT_EQ(refusal({0, 1}),
            "not there: disable_custom_all_reduce=true sums with NCCL, which was not found: no NCCL; tried: "
            "QUIRE_NCCL=/nowhere: is not there. Install the wheel nvidia-nccl-cu13, or name the library in QUIRE_NCCL. "
            "Or leave disable_custom_all_reduce false: quire sums by itself then.");
}

}  // namespace
}  // namespace quire
