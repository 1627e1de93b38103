// Loading through pinned slots brings the bits of loading in place: every family, dtype and kind of slot, on a device
// that does everything late.
#include <gtest/gtest.h>

#include <vector>

#include "model/late_device.h"
#include "model/tiny_families.h"
#include "model/weight_loader.h"

namespace quire {
namespace {

using test::LateDevice;
using test::Prefer;
using test::RandomCheckpoint;
using test::Stored;
using test::TinyFamily;

// The weights of a device as bytes. `fill` loads them.
template <typename Fill>
std::vector<std::byte> weights_of(const ArchSpec& arch, DType dtype, Device& device, const Fill& fill) {
  Weights weights;
  const size_t num_bytes = place_weights(arch, dtype, device.kernels(), nullptr, weights);
  const auto region = device.allocate(RegionTag::weights, num_bytes);
  place_weights(arch, dtype, device.kernels(), region->data(), weights);
  fill(weights);
  std::vector<std::byte> bytes(num_bytes);
  device.copy_to_host(bytes.data(), region->data(), num_bytes);
  return bytes;
}

std::vector<std::byte> load(const ArchSpec& arch, DType dtype, Stored stored, Device& device,
                            const LoadOptions& options = {}) {
  return weights_of(arch, dtype, device, [&](Weights& weights) {
    load_weights(arch, RandomCheckpoint(arch, stored), device, weights, options);
  });
}

std::unique_ptr<Device> host() { return make_host_device({.num_threads = 2}); }

class StagedLoad : public testing::TestWithParam<TinyFamily> {
 protected:
  ArchSpec arch_ = arch_registry().build(GetParam().config);
};

// One slot, two, and several; rows that fill a slot, and slots that hold a few tensors.
constexpr StagingOptions kStagings[] = {{.slot_bytes = 1, .num_slots = 2, .num_threads = 1},
                                        {.slot_bytes = 5000, .num_slots = 1, .num_threads = 2},
                                        {.slot_bytes = 50000, .num_slots = 3, .num_threads = 2}};

TEST_P(StagedLoad, BringsTheSameBits) {
  constexpr std::pair<Stored, DType> kDtypes[] = {{Stored::bf16, DType::bf16},
                                                  {Stored::f32, DType::f32},
                                                  {Stored::f16, DType::bf16},
                                                  {Stored::f64, DType::f32},
                                                  {Stored::f64, DType::f16},
                                                  {Stored::unaligned_f32, DType::bf16},
                                                  {Stored::unaligned_bf16, DType::bf16}};
  for (const auto& [stored, dtype] : kDtypes) {
    SCOPED_TRACE(testing::Message() << "stored " << static_cast<int>(stored) << " as " << dtype_name(dtype));
    const auto device = host();
    const std::vector<std::byte> expected = load(arch_, dtype, stored, *device);
    for (const StagingOptions& staging : kStagings) {
      for (const Prefer prefer : {Prefer::compute, Prefer::random}) {
        LateDevice late(prefer);
        EXPECT_TRUE(load(arch_, dtype, stored, late, {.staging = staging}) == expected)
            << "slots of " << staging.slot_bytes << " bytes, prefer " << static_cast<int>(prefer);
        EXPECT_EQ(late.region_bytes() + late.host_bytes(), 0u) << "everything is given back";
      }
    }
  }
}

TEST_P(StagedLoad, DummyWeightsAreTheSameOnEveryDevice) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const auto device = host();
    const auto fill = [&](Device& on) {
      return weights_of(arch_, dtype, on, [&](Weights& weights) { load_dummy_weights(arch_, on, weights); });
    };
    const std::vector<std::byte> expected = fill(*device);
    LateDevice late(Prefer::random);
    EXPECT_TRUE(fill(late) == expected);
    EXPECT_EQ(late.num_copies(), 0) << "no value crosses the bus";
    EXPECT_EQ(late.region_bytes(), 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(, StagedLoad, testing::ValuesIn(test::tiny_families()),
                         [](const auto& instance) { return instance.param.name; });

// A tensor of several tasks and slots of the real size.
TEST(StagedLoadLarge, ManyChunksOfATransposedTensor) {
  Json config = test::tiny_gpt2();
  config["n_embd"] = 514, config["n_head"] = 2, config["n_layer"] = 1, config["n_inner"] = 5003;
  const ArchSpec arch = arch_registry().build(config);
  const auto device = host();
  const std::vector<std::byte> expected = load(arch, DType::bf16, Stored::f32, *device);
  for (const size_t slot_bytes : {size_t{1} << 20, size_t{3} << 20, size_t{16} << 20}) {
    LateDevice late(Prefer::compute);
    const LoadOptions options = {.staging = {.slot_bytes = slot_bytes, .num_threads = 2}};
    EXPECT_TRUE(load(arch, DType::bf16, Stored::f32, late, options) == expected) << slot_bytes;
  }
}

// The error of a kernel ends the load, and nothing that runs later finds memory gone.
TEST(StagedLoadErrors, AKernelThatThrowsLeavesNothingBehind) {
  const ArchSpec arch = arch_registry().build(test::tiny_families()[0].config);
  KernelTable table = host()->kernels();
  static int num_packs;
  num_packs = 0;
  table.pack_weight = [](const PackWeightParams&, Stream) {
    if (++num_packs == 3) throw NotSupported("the third pack");
  };
  LateDevice late(Prefer::compute, &table);
  EXPECT_THROW(load(arch, DType::bf16, Stored::bf16, late), NotSupported);
  EXPECT_EQ(late.region_bytes() + late.host_bytes(), 0u);
}

}  // namespace
}  // namespace quire
