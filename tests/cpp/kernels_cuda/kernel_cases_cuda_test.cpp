// Every case of the table on a GPU: right when each launch is waited for, and with the same bits when launches are
// queued. Two runs of the second kind, because races come and go.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda/cuda_kernels.h"
#include "kernels/cases/all_cases.h"
#include "kernels_cuda/device_memory.h"
#include "kernels_cuda/device_queue.h"

namespace quire {
namespace {

// The references are computed by one CPU thread.
constexpr double kMaxFlops = 2e9;

std::vector<uint8_t> output_bytes(const cases::KernelCase& kernel_case) {
  std::vector<uint8_t> bytes;
  for (const cases::Buffer* buffer : kernel_case.outputs()) {
    const auto* data = static_cast<const uint8_t*>(buffer->data());
    bytes.insert(bytes.end(), data, data + buffer->size_bytes());
  }
  return bytes;
}

void run_case(const cases::CaseEntry& entry) {
  const KernelTable& table = cuda::kernels();
  std::unique_ptr<cases::KernelCase> kernel_case;
  {
    const device_memory::Exact exact;
    kernel_case = entry.make(table, Stream{});
  }
  if (kernel_case->flops > kMaxFlops) GTEST_SKIP() << "too large for its reference";
  kernel_case->reset();
  {
    const device_memory::Exact exact;
    kernel_case->run(table, Stream{});
  }
  ASSERT_EQ(kernel_case->check(), "");
  const std::vector<uint8_t> bits = output_bytes(*kernel_case);
  ASSERT_FALSE(bits.empty());
  for (int repeat = 0; repeat < 2; ++repeat) {
    kernel_case->reset();
    {
      const device_queue::Deferred deferred;
      kernel_case->run(table, Stream{});
    }
    device_queue::finish();
    ASSERT_TRUE(bits == output_bytes(*kernel_case)) << "other bits when launches are queued";
  }
}

class CudaCase : public testing::Test {
 public:
  explicit CudaCase(cases::CaseEntry entry) : entry_(std::move(entry)) {}
  void TestBody() override {
    SCOPED_TRACE(entry_.name);
    try {
      run_case(entry_);
    } catch (const NotSupported& missing) {
      GTEST_SKIP() << missing.what();
    } catch (const DeviceError& error) {
      FAIL() << entry_.name << ": " << error.what();
    }
  }

 private:
  cases::CaseEntry entry_;
};

// One test a case, so that a case can be run alone: --gtest_filter='CudaCases.rope_*'.
const bool kRegistered = [] {
  for (const cases::CaseEntry& entry : cases::all_cases()) {
    if (entry.is_benchmark) continue;
    testing::RegisterTest("CudaCases", entry.name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
                          [entry] { return static_cast<testing::Test*>(new CudaCase(entry)); });
  }
  return true;
}();

TEST(CudaTable, IsNamedAndComplete) {
  EXPECT_STREQ(cuda::kernels().name, "cuda");
  EXPECT_TRUE(kRegistered);
}

}  // namespace
}  // namespace quire
