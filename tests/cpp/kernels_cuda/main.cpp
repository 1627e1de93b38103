// Runs the tests on the first device; 77 where there is none, which ctest counts as skipped.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "kernels_cuda/device_memory.h"
#include "kernels_cuda/device_queue.h"

namespace {

constexpr int kSkipped = 77;

// After an error that a context does not survive, the tests that follow would all fail and say nothing.
class StopsWithTheDevice : public testing::EmptyTestEventListener {
  void OnTestStart(const testing::TestInfo&) override {
    if (!quire::device_queue::failure().empty()) {
      GTEST_SKIP() << "the device was lost to " << quire::device_queue::failure();
    }
  }
  void OnTestEnd(const testing::TestInfo& test) override {
    if (quire::device_queue::failure().empty() || is_told_) return;
    is_told_ = true;
    std::printf("the device was lost in %s.%s: %s; the rest is skipped\n", test.test_suite_name(), test.name(),
                quire::device_queue::failure().c_str());
  }
  bool is_told_ = false;
};

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (!testing::GTEST_FLAG(list_tests)) {
    const std::string problem = quire::device_memory::start();
    if (!problem.empty()) {
      std::printf("%s\n", problem.c_str());
      return kSkipped;
    }
    std::printf("test memory is %s\n", quire::device_memory::kind());
  }
  testing::UnitTest::GetInstance()->listeners().Append(new StopsWithTheDevice);
  const int result = quire::device_memory::run_within_reach([] { return RUN_ALL_TESTS(); });
  // No destructors of statics: the CUDA runtime takes its memory away before those that have some of it are done.
  std::fflush(nullptr);
  std::_Exit(result);
}
