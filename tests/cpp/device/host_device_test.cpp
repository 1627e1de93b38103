// Regions give memory back and keep their addresses; the arena is a stack that cannot outgrow its dry run.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/check.h"
#include "device/arena.h"
#include "device/device.h"

namespace quire {
namespace {

// Pages of [data, data + num_bytes) that lie in physical memory.
size_t resident_pages(const void* data, size_t num_bytes) {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> pages((num_bytes + page - 1) / page);
  EXPECT_EQ(::mincore(const_cast<void*>(data), num_bytes, pages.data()), 0);
  return static_cast<size_t>(std::count_if(pages.begin(), pages.end(), [](unsigned char p) { return (p & 1) != 0; }));
}

TEST(HostDevice, TheEnvironmentChoosesKernelsUnlessTheOptionDoes) {
  const char* value = std::getenv("QUIRE_CPU_ISA");
  const std::string before = value != nullptr ? value : "";
  const std::string best = make_host_device({.num_threads = 1})->kernels().name;
  ASSERT_EQ(::setenv("QUIRE_CPU_ISA", "portable", 1), 0);
  EXPECT_STREQ(make_host_device({.num_threads = 1})->kernels().name, "portable");
  EXPECT_EQ(make_host_device({.num_threads = 1, .isa = best})->kernels().name, best);
  ASSERT_EQ(value != nullptr ? ::setenv("QUIRE_CPU_ISA", before.c_str(), 1) : ::unsetenv("QUIRE_CPU_ISA"), 0);
}

TEST(HostDevice, ReleaseGivesMemoryBackAndRestoreKeepsTheAddress) {
  const auto device = make_host_device({.num_threads = 1});
  constexpr size_t kBytes = size_t{8} << 20;
  for (const size_t num_bytes : {kBytes, size_t{5000}}) {
    const auto region = device->allocate(RegionTag::kv_cache, num_bytes);
    EXPECT_EQ(region->num_bytes(), num_bytes);
    EXPECT_TRUE(region->resident());
    EXPECT_EQ(resident_pages(region->data(), num_bytes), 0u) << "memory must come on first touch";
    std::byte* const data = region->data();
    std::fill(data, data + num_bytes, std::byte{7});
    EXPECT_GT(resident_pages(data, num_bytes), 0u);
    region->release();
    region->release();  // twice is once
    EXPECT_FALSE(region->resident());
    EXPECT_EQ(resident_pages(data, num_bytes), 0u);
    region->restore();
    region->restore();
    EXPECT_EQ(region->data(), data);
    EXPECT_TRUE(std::all_of(data, data + num_bytes, [](std::byte b) { return b == std::byte{0}; }));
  }
}

TEST(HostDeviceDeathTest, AReleasedRegionCannotBeTouched) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        const auto region = make_host_device({.num_threads = 1})->allocate(RegionTag::weights, 4096);
        region->release();
        *reinterpret_cast<volatile char*>(region->data()) = 1;
      },
      "");
}

TEST(HostDevice, AnImpossibleSizeIsAnErrorThatNamesTheRegion) {
  const auto device = make_host_device({.num_threads = 1});
  try {
    device->allocate(RegionTag::kv_cache, size_t{1} << 62);
    FAIL() << "4 EiB were reserved";
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find("kv_cache"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find(std::to_string(size_t{1} << 62)), std::string::npos) << error.what();
  }
}

TEST(HostDevice, TellsThreadsAndMemory) {
  const auto device = make_host_device({.num_threads = 3});
  EXPECT_EQ(device->name(), "cpu");
  EXPECT_EQ(device->num_threads(), 3);
  const DeviceMemory memory = device->memory();
  EXPECT_GT(memory.available_bytes, 0);
  EXPECT_LE(memory.available_bytes, memory.total_bytes);
}

TEST(Arena, TheDryRunDecidesTheSizeAndOneByteMoreFails) {
  const auto step = [](Arena& arena, int64_t extra) {
    const Arena::Scope scope(arena);
    arena.allocate<float>(10);
    {
      const Arena::Scope inner(arena);
      arena.allocate<float>(100);
    }
    arena.allocate<uint16_t>(32 + extra);
  };
  Arena arena;
  EXPECT_TRUE(arena.measuring());
  step(arena, 0);
  EXPECT_EQ(arena.high_water_bytes(), 64u + 448u);  // the inner scope and the last allocation share their bytes
  std::vector<std::byte> memory(arena.high_water_bytes());
  arena.bind(memory.data(), memory.size());
  EXPECT_FALSE(arena.measuring());
  for (int repeat = 0; repeat < 3; ++repeat) step(arena, 0);
  EXPECT_THROW(step(arena, 1000), InternalError);
}

TEST(Arena, AllocationsAreAlignedAndApart) {
  alignas(64) std::byte memory[1024];
  Arena arena;
  arena.bind(memory, sizeof(memory));
  const std::byte* first = arena.allocate_bytes(1);
  const std::byte* second = arena.allocate_bytes(65);
  const std::byte* third = arena.allocate_bytes(1);
  EXPECT_EQ(first, memory);
  EXPECT_EQ(second, memory + 64);
  EXPECT_EQ(third, memory + 192);
}

}  // namespace
}  // namespace quire
