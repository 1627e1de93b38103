// Every case of the table that the emulation can run in reasonable time, on the CUDA kernels compiled for the
// emulation: right in forward, reverse and random order of threads, and with the same bits in all of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/cuda_kernels.h"
#include "cuda/simt/engine.h"
#include "kernels/cases/all_cases.h"
#include "support/sanitizers.h"

namespace quire {
namespace {

// The emulation takes seconds for 71 heads a key head without tensor cores (54 Mflop): a case beyond the first limit
// runs in random order alone, one beyond the others not at all.
constexpr double kMaxFlopsOfThreeRuns = kSanitized ? 1e6 : 5e7;
constexpr double kMaxFlops = kSanitized ? 6e6 : 1e8;
constexpr double kMaxBytes = 4e6;

struct OrderCase {
  simt::Order order;
  uint64_t seed;
  const char* name;
};
constexpr OrderCase kOrders[] = {
    {simt::Order::forward, 1, "forward"}, {simt::Order::reverse, 1, "reverse"}, {simt::Order::random, 7, "random"}};

std::vector<uint8_t> output_bytes(const cases::KernelCase& kernel_case) {
  std::vector<uint8_t> bytes;
  for (const cases::Buffer* buffer : kernel_case.outputs()) {
    const auto* data = static_cast<const uint8_t*>(buffer->data());
    bytes.insert(bytes.end(), data, data + buffer->size_bytes());
  }
  return bytes;
}

// Runs one case in every order.
void run_case(const cases::CaseEntry& entry) {
  SCOPED_TRACE(entry.name);
  const KernelTable& table = cuda::kernels();
  simt::set_order(simt::Order::forward);
  const auto kernel_case = entry.make(table, Stream{});
  if (kernel_case->flops > kMaxFlops || kernel_case->bytes > kMaxBytes) GTEST_SKIP() << "too large for the emulation";
  std::vector<uint8_t> first;
  for (const OrderCase& each : kOrders) {
    if (kernel_case->flops > kMaxFlopsOfThreeRuns && each.order != simt::Order::random) continue;
    simt::set_order(each.order, each.seed);
    kernel_case->reset();
    kernel_case->run(table, Stream{});
    ASSERT_EQ(kernel_case->check(), "") << each.name;
    std::vector<uint8_t> bytes = output_bytes(*kernel_case);
    ASSERT_FALSE(bytes.empty());
    if (first.empty()) first = bytes;
    ASSERT_TRUE(first == bytes) << each.name << " gives other bits than the order before";
  }
}

class SimtCase : public testing::Test {
 public:
  explicit SimtCase(cases::CaseEntry entry) : entry_(std::move(entry)) {}
  void TearDown() override { simt::set_order(simt::Order::forward); }
  void TestBody() override { run_case(entry_); }

 private:
  cases::CaseEntry entry_;
};

// One test a case, so that a case can be run alone: --gtest_filter='SimtCases.rope_*'.
const bool kRegistered = [] {
  for (const cases::CaseEntry& entry : cases::all_cases()) {
    if (entry.is_benchmark) continue;
    testing::RegisterTest("SimtCases", entry.name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
                          [entry] { return static_cast<testing::Test*>(new SimtCase(entry)); });
  }
  return true;
}();

TEST(SimtTable, IsNamedAndComplete) {
  const KernelTable& table = cuda::kernels();
  EXPECT_STREQ(table.name, "simt");
  EXPECT_TRUE(kRegistered);
  EXPECT_TRUE(table.packed_weight_bytes && table.pack_weight && table.unpack_weight && table.fill_dummy &&
              table.gemm_workspace_bytes && table.gemm);
  EXPECT_TRUE(table.embedding && table.norm && table.rope_kv_write && table.update_rows && table.prepare_batch &&
              table.store_sampled && table.copy_blocks);
  EXPECT_TRUE(table.paged_attention && table.attention_workspace_bytes && table.attention_plan_bytes);
  EXPECT_TRUE(table.plan_attention && table.sample && table.sampling_workspace_bytes);
  EXPECT_EQ(table.block_size_multiple, 16);
}

}  // namespace
}  // namespace quire
