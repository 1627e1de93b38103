// Weights that change: tensors in any order leave the bits of loading them, what fails leaves those from before, and
// what is read back is what was written; on the host, and on a device that does everything late, also where layers
// stay in host memory.
#include "model/weight_update.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <stdexcept>

#include "model/late_device.h"
#include "model/shard.h"
#include "model/tiny_families.h"
#include "model/weight_reader.h"

namespace quire {
namespace {

using test::LateDevice;
using test::Prefer;
using test::RandomCheckpoint;
using test::Stored;
using test::TinyFamily;

// A model's weights on a device, loaded, to be changed.
class Loaded {
 public:
  Loaded(const ArchSpec& arch, WeightFormat format, std::unique_ptr<Device> device, const Checkpoint& checkpoint,
         int64_t offload_bytes = 0)
      : arch_(arch), device_(std::move(device)) {
    const OffloadPlan plan = plan_offload(arch, format, device_->kernels(), offload_bytes);
    const size_t num_bytes = place_weights(arch, format, device_->kernels(), nullptr, weights_, plan);
    region_ = device_->allocate(RegionTag::weights, num_bytes);
    place_weights(arch, format, device_->kernels(), region_->data(), weights_, plan);
    if (!plan.empty()) offloaded_ = std::make_unique<OffloadedLayers>(*device_, plan, region_->data());
    load_weights(arch, checkpoint, *device_, weights_, {.offload = offloaded_.get()});
  }

  WeightAccess access() { return {arch_, *device_, weights_, offloaded_.get(), state_}; }
  const WeightState& state() const { return state_; }

  // Of the region, less slots that layers pass through, and of the layers in host memory.
  std::vector<std::byte> bytes() {
    const size_t slots = offloaded_ == nullptr ? 0 : offloaded_->plan().total_slot_bytes();
    std::vector<std::byte> all(region_->num_bytes() - slots);
    device_->copy_to_host(all.data(), region_->data() + slots, all.size());
    if (offloaded_ == nullptr) return all;
    device_->synchronize();
    for (const int32_t layer : offloaded_->plan().layers) {
      const HostBuffer& host = offloaded_->host_memory(layer);
      all.insert(all.end(), host.data(), host.data() + host.num_bytes());
    }
    return all;
  }

 private:
  const ArchSpec& arch_;
  std::unique_ptr<Device> device_;
  Weights weights_;
  std::unique_ptr<Region> region_;
  std::unique_ptr<OffloadedLayers> offloaded_;
  WeightState state_;
};

std::unique_ptr<Device> host() { return make_host_device({.num_threads = 1}); }
std::unique_ptr<Device> late() { return std::make_unique<LateDevice>(Prefer::random); }

// Copies of a checkpoint's tensors, one after the other, each in memory that is spoilt when the next one comes.
class OneByOne {
 public:
  explicit OneByOne(const Checkpoint& checkpoint, size_t count = SIZE_MAX)
      : tensors_(checkpoint.tensors()), count_(std::min(count, tensors_.size())) {}

  bool operator()(CheckpointTensor& tensor) {
    std::ranges::fill(memory_, std::byte{0xff});
    if (next_ == count_) return false;
    tensor = tensors_[next_++];
    size_t num_bytes = dtype_bytes(tensor.dtype);
    for (const int64_t size : tensor.shape) num_bytes *= static_cast<size_t>(size);
    const auto* data = static_cast<const std::byte*>(tensor.data);
    memory_.assign(data, data + num_bytes);
    tensor.data = memory_.data();
    return true;
  }

 private:
  const std::vector<CheckpointTensor>& tensors_;
  size_t count_, next_ = 0;
  std::vector<std::byte> memory_;
};

struct Place {
  const char* name;
  std::unique_ptr<Device> (*make)();
  int64_t offload_bytes;
};
constexpr Place kPlaces[] = {{"host", host, 0}, {"late", late, 0}, {"late, two layers in host memory", late, 60000}};

class WeightUpdates : public testing::TestWithParam<TinyFamily> {
 protected:
  ArchSpec arch_ = arch_registry().build(GetParam().config);
  RandomCheckpoint before_{arch_, Stored::f32, 1};
  RandomCheckpoint after_{arch_, Stored::f32, 2};
};

TEST_P(WeightUpdates, LeaveTheBitsOfLoading) {
  for (const Place& place : kPlaces) {
    SCOPED_TRACE(place.name);
    for (const bool atomic : {true, false}) {
      Loaded fresh(arch_, DType::bf16, place.make(), RandomCheckpoint(arch_, Stored::f32, 2), place.offload_bytes);
      Loaded changed(arch_, DType::bf16, place.make(), RandomCheckpoint(arch_, Stored::f32, 1), place.offload_bytes);
      ASSERT_NE(changed.bytes(), fresh.bytes());
      update_weights(one_rank(changed.access()), OneByOne(after_), atomic);
      EXPECT_EQ(changed.bytes(), fresh.bytes());
      EXPECT_EQ(changed.state().version, 1u);
    }
  }
}

TEST_P(WeightUpdates, WhatFailsLeavesNoTrace) {
  for (const Place& place : kPlaces) {
    SCOPED_TRACE(place.name);
    Loaded model(arch_, DType::bf16, place.make(), RandomCheckpoint(arch_, Stored::f32, 1), place.offload_bytes);
    const std::vector<std::byte> old = model.bytes();
    const size_t count = after_.tensors().size();
    for (const size_t good : {size_t{1}, count / 2, count}) {
      OneByOne tensors(after_, good);
      EXPECT_THROW(update_weights(
                       one_rank(model.access()),
                       [&](CheckpointTensor& tensor) {
                         if (!tensors(tensor)) throw std::runtime_error("gone");
                         return true;
                       },
                       true),
                   std::runtime_error);
      EXPECT_EQ(model.bytes(), old) << good;
      OneByOne others(after_, good);
      bool has_ended = false;
      EXPECT_THROW(update_weights(
                       one_rank(model.access()),
                       [&](CheckpointTensor& tensor) {
                         if (others(tensor)) return true;
                         tensor = {"nonsense", DType::f32, {1}, nullptr};
                         return !std::exchange(has_ended, true);
                       },
                       true),
                   InvalidArgument);
      EXPECT_EQ(model.bytes(), old) << good;
    }
    EXPECT_EQ(model.state().version, 0u);
    EXPECT_FALSE(model.state().is_incomplete);
  }
}

TEST_P(WeightUpdates, WithoutOldValuesAFailureIsRemembered) {
  Loaded fresh(arch_, DType::f32, host(), RandomCheckpoint(arch_, Stored::f32, 2));
  Loaded model(arch_, DType::f32, host(), RandomCheckpoint(arch_, Stored::f32, 1));
  OneByOne tensors(after_, 2);
  const NextTensor failing = [&](CheckpointTensor& tensor) {
    if (!tensors(tensor)) throw std::runtime_error("gone");
    return true;
  };
  EXPECT_THROW(update_weights(one_rank(model.access()), failing, false), std::runtime_error);
  EXPECT_TRUE(model.state().is_incomplete);
  update_weights(one_rank(model.access()), OneByOne(after_, 3), true);
  EXPECT_TRUE(model.state().is_incomplete) << "a few of them are not enough";
  update_weights(one_rank(model.access()), OneByOne(after_), false);
  EXPECT_FALSE(model.state().is_incomplete);
  EXPECT_EQ(model.bytes(), fresh.bytes());
}

// Whatever is left out, its absence is not hidden by the others coming twice.
TEST_P(WeightUpdates, AreWholeWhenEachPartHasCome) {
  const std::vector<CheckpointTensor>& all = after_.tensors();
  for (size_t left_out = 0; left_out < all.size(); ++left_out) {
    Loaded model(arch_, DType::f32, host(), RandomCheckpoint(arch_, Stored::f32, 1));
    model.access().state.forget();
    std::vector<CheckpointTensor> others = all;
    others.erase(others.begin() + static_cast<ptrdiff_t>(left_out));
    const auto few = checkpoint_in_memory(others);
    for (int i = 0; i < 3; ++i) {
      update_weights(one_rank(model.access()), OneByOne(*few), true);
      ASSERT_TRUE(model.state().is_incomplete) << all[left_out].name;
    }
    const auto one = checkpoint_in_memory({all[left_out]});
    update_weights(one_rank(model.access()), OneByOne(*one), true);
    EXPECT_FALSE(model.state().is_incomplete) << all[left_out].name;
  }
}

TEST_P(WeightUpdates, CheckpointsReplaceAllOrNothing) {
  for (const Place& place : kPlaces) {
    SCOPED_TRACE(place.name);
    Loaded fresh(arch_, DType::bf16, place.make(), RandomCheckpoint(arch_, Stored::f32, 2), place.offload_bytes);
    Loaded model(arch_, DType::bf16, place.make(), RandomCheckpoint(arch_, Stored::f32, 1), place.offload_bytes);
    const std::vector<std::byte> old = model.bytes();
    auto few = checkpoint_in_memory({after_.tensors().begin(), after_.tensors().end() - 1});
    EXPECT_THROW(reload_weights(one_rank(model.access()), few.get()), InvalidArgument);
    EXPECT_EQ(model.bytes(), old);
    EXPECT_FALSE(model.state().is_incomplete);
    const RandomCheckpoint other(arch_, Stored::f32, 2);
    reload_weights(one_rank(model.access()), &other);
    EXPECT_EQ(model.bytes(), fresh.bytes());
    EXPECT_EQ(model.state().version, 1u);
  }
}

TEST_P(WeightUpdates, WhatWasWrittenIsRead) {
  for (const Place& place : kPlaces) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      SCOPED_TRACE(testing::Message() << place.name << ", " << dtype_name(dtype));
      const Stored stored = dtype == DType::f32 ? Stored::f32 : dtype == DType::bf16 ? Stored::bf16 : Stored::f16;
      const RandomCheckpoint source(arch_, stored, 1);
      Loaded model(arch_, dtype, place.make(), RandomCheckpoint(arch_, stored, 1), place.offload_bytes);
      size_t num_own = 0;
      for (const ReadableWeight& weight : readable_weights(model.access())) {
        const std::string& name = weight.same_as.empty() ? weight.name : weight.same_as;
        num_own += weight.same_as.empty() ? 1 : 0;
        const auto found = std::ranges::find(source.tensors(), name, &CheckpointTensor::name);
        ASSERT_NE(found, source.tensors().end()) << name;
        EXPECT_EQ(weight.shape, found->shape) << weight.name;
        const std::vector<std::byte> read = read_weight(one_rank(model.access()), weight.name);
        // A norm that is kept with 1 added has lost some bits of its own.
        const bool exact = GetParam().name != "gemma2" || name.find("norm") == std::string::npos;
        if (exact) {
          EXPECT_EQ(std::memcmp(read.data(), found->data, read.size()), 0) << weight.name;
          continue;
        }
        for (int64_t i = 0; i < found->shape[0]; ++i) {
          EXPECT_NEAR(test::element(read.data(), dtype, i), test::element(found->data, dtype, i), 6e-8f) << name;
        }
      }
      EXPECT_EQ(num_own, source.tensors().size());
    }
  }
}

// A model that ranks share: two or, of the families with five heads, five.
class Ranks {
 public:
  Ranks(const ArchSpec& arch, uint32_t seed) {
    const int32_t num_ranks = arch.layers.front().attn.num_heads % 2 == 0 ? 2 : 5;
    for (int32_t rank = 0; rank < num_ranks; ++rank) archs_.push_back(shard_arch(arch, rank, num_ranks));
    for (const ArchSpec& part : archs_) {
      loaded_.push_back(std::make_unique<Loaded>(part, DType::f32, host(), RandomCheckpoint(arch, Stored::f32, seed)));
      access_.all.push_back(loaded_.back()->access());
    }
    access_.each = [this](const std::function<void(size_t)>& work) {
      for (size_t rank = 0; rank < size(); ++rank) work(rank);
    };
  }
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  size_t size() const { return loaded_.size(); }
  const WeightRanks& access() const { return access_; }
  std::vector<std::byte> bytes(size_t rank) { return loaded_[rank]->bytes(); }

 private:
  std::vector<ArchSpec> archs_;
  std::vector<std::unique_ptr<Loaded>> loaded_;
  WeightRanks access_;
};

TEST_P(WeightUpdates, PartsOfRanksAreReadAndWritten) {
  Ranks fresh(arch_, 2), changed(arch_, 1);
  std::deque<std::vector<std::byte>> memory;
  std::vector<std::vector<CheckpointTensor>> parts(fresh.size());
  for (size_t rank = 0; rank < fresh.size(); ++rank) {
    ASSERT_NE(changed.bytes(rank), fresh.bytes(rank));
    for (const ReadableWeight& weight : readable_weights(fresh.access().all[rank], Extent::shard)) {
      if (!weight.same_as.empty()) continue;
      memory.push_back(read_shard(fresh.access(), rank, weight.name));
      size_t num_elements = 1;
      for (const int64_t size : weight.shape) num_elements *= static_cast<size_t>(size);
      ASSERT_EQ(memory.back().size(), num_elements * sizeof(float)) << weight.name;
      const auto source = std::ranges::find(after_.tensors(), weight.name, &CheckpointTensor::name);
      // A norm that is kept with 1 added has lost some bits of its own.
      const bool is_norm = weight.name.find("norm") != std::string::npos;
      parts[rank].push_back(
          {weight.name, DType::f32, weight.shape, is_norm ? source->data : static_cast<void*>(memory.back().data())});
    }
  }
  update_shards(changed.access(), parts);
  for (size_t rank = 0; rank < fresh.size(); ++rank) {
    EXPECT_EQ(changed.bytes(rank), fresh.bytes(rank)) << rank;
    EXPECT_EQ(changed.access().all[rank].state.version, 1u);
  }
  Ranks other(arch_, 1);
  const std::vector<std::byte> old = other.bytes(0);
  parts[1].back().shape.front() += 1;
  EXPECT_THROW(update_shards(other.access(), parts), InvalidArgument);
  EXPECT_EQ(other.bytes(0), old);
  EXPECT_EQ(other.access().all[0].state.version, 0u);
}

INSTANTIATE_TEST_SUITE_P(, WeightUpdates, testing::ValuesIn(test::tiny_families()),
                         [](const auto& instance) { return instance.param.name; });

TEST(WeightUpdateErrors, AllOfThemAtOnce) {
  const ArchSpec arch = arch_registry().build(test::tiny_families()[0].config);
  const RandomCheckpoint checkpoint(arch, Stored::f32);
  Loaded model(arch, DType::f32, host(), RandomCheckpoint(arch, Stored::f32));
  std::vector<CheckpointTensor> tensors = checkpoint.tensors();
  tensors.push_back({"x", DType::f32, {3}, nullptr});
  tensors.push_back({"model.norm.weight", DType::f32, {70}, tensors[0].data});
  tensors[0].shape.push_back(2);
  const std::string wanted =
      "the tensors do not fit the model (LlamaForCausalLM):\n1 unexpected:\n  x\n1 misshaped:\n  " + tensors[0].name;
  try {
    check_tensors(model.access(), tensors);
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_EQ(std::string(error.what()).substr(0, wanted.size()), wanted);
    EXPECT_NE(std::string(error.what()).find("1 given twice:\n  model.norm.weight"), std::string::npos) << error.what();
  }
  EXPECT_THROW(read_weight(one_rank(model.access()), "x"), InvalidArgument);
}

TEST(WeightUpdateInt8, RoundsAgainAndReadsWhatItStandsFor) {
  for (const char* name : {"llama", "llama_biases_tied"}) {
    const auto families = test::tiny_families();
    const auto family = std::ranges::find(families, name, &TinyFamily::name);
    const ArchSpec arch = arch_registry().build(family->config);
    const WeightFormat format(DType::f32, true);
    Loaded fresh(arch, format, host(), RandomCheckpoint(arch, Stored::f32, 2));
    Loaded model(arch, format, host(), RandomCheckpoint(arch, Stored::f32, 1));
    const RandomCheckpoint after(arch, Stored::f32, 2);
    update_weights(one_rank(model.access()), OneByOne(after), true);
    EXPECT_EQ(model.bytes(), fresh.bytes());
    const auto source =
        std::ranges::find(after.tensors(), "model.layers.1.mlp.up_proj.weight", &CheckpointTensor::name);
    const std::vector<std::byte> read = read_weight(one_rank(model.access()), source->name);
    const auto* values = static_cast<const float*>(source->data);
    for (int64_t row = 0; row < source->shape[0]; ++row) {
      float largest = 0.0f;
      for (int64_t i = 0; i < source->shape[1]; ++i) {
        largest = std::max(largest, std::fabs(values[row * source->shape[1] + i]));
      }
      for (int64_t i = row * source->shape[1]; i < (row + 1) * source->shape[1]; ++i) {
        EXPECT_NEAR(test::element(read.data(), DType::f32, i), values[i], 0.5001f * largest / 127.0f);
      }
    }
  }
}

}  // namespace
}  // namespace quire
