// cpu_offload_gb in the memory plan: what the device gains, and where it has no effect.
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "cpu/cpu_kernels.h"
#include "engine/engine_config.h"
#include "model/plain_kernels.h"

namespace quire {
namespace {

const std::string kDemo = QUIRE_DEMO_MODEL_DIR;

// The host, but with memory of its own.
class ApartDevice final : public test::TableDevice {
 public:
  ApartDevice() : TableDevice(cpu::select_kernels()) {}
  bool is_asynchronous() const override { return true; }
  DeviceMemory memory() const override { return {.total_bytes = 64 << 20, .available_bytes = 64 << 20}; }
  static std::unique_ptr<Device> cpu() { return make_host_device({.num_threads = 1}); }
};

class OffloadInThePlan : public testing::Test {
 protected:
  void SetUp() override {
    set_log_sink([this](LogLevel, const std::string& message) { warnings_.push_back(message); });
  }
  void TearDown() override { set_log_sink({}); }

  static EngineConfig resolve(double cpu_offload_gb, const Device& device) {
    return resolve_engine_config(kDemo, {.max_model_len = 128, .cpu_offload_gb = cpu_offload_gb}, device);
  }
  std::vector<std::string> warnings_;
  ApartDevice device_;
};

TEST_F(OffloadInThePlan, TheDeviceHoldsTwoSlotsInsteadOfTheLayers) {
  const MemoryPlan without = resolve(0.0, device_).memory;
  EXPECT_TRUE(without.offload.empty());
  const EngineConfig config = resolve(std::numeric_limits<double>::infinity(), device_);
  const MemoryPlan& with = config.memory;
  const size_t num_layers = config.model.arch.layers.size();
  ASSERT_GT(num_layers, 2u);
  EXPECT_EQ(with.offload.layers.size(), num_layers) << "more than there is: all";
  const auto layer = static_cast<int64_t>(with.offload.slot_bytes);
  EXPECT_EQ(with.weight_bytes, without.weight_bytes - (static_cast<int64_t>(num_layers) - 2) * layer);
  EXPECT_EQ(with.workspace_bytes, without.workspace_bytes);
  EXPECT_EQ(describe(config, device_).offloaded_weight_bytes, static_cast<int64_t>(num_layers) * layer);
  EXPECT_TRUE(warnings_.empty());
}

TEST_F(OffloadInThePlan, WhatSavesNothingIsSaid) {
  EXPECT_EQ(resolve(1e-9, device_).memory.offload.layers.size(), 1u);
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_NE(warnings_[0].find("saves no device memory"), std::string::npos) << warnings_[0];
}

TEST_F(OffloadInThePlan, NoEffectOnACpu) {
  const auto cpu = ApartDevice::cpu();
  const MemoryPlan with = resolve(1.0, *cpu).memory, without = resolve(0.0, *cpu).memory;
  EXPECT_TRUE(with.offload.empty());
  EXPECT_EQ(with.weight_bytes, without.weight_bytes);
}

TEST_F(OffloadInThePlan, NegativeAndNanAreRefused) {
  EXPECT_THROW(resolve(-1.0, device_), InvalidArgument);
  EXPECT_THROW(resolve(std::numeric_limits<double>::quiet_NaN(), device_), InvalidArgument);
}

}  // namespace
}  // namespace quire
