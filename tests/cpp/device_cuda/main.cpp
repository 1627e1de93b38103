// Runs the tests of the CUDA device on the first GPU; 77 where there is none that will do, which ctest counts as
// skipped.
#include <gtest/gtest.h>

#include <cstdio>
#include <exception>

#include "device/cuda/machine.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (testing::GTEST_FLAG(list_tests)) return RUN_ALL_TESTS();
  try {
    quire::check_cuda_machine(0);
  } catch (const std::exception& error) {
    std::printf("skipped: %s\n", error.what());
    return 77;
  }
  return RUN_ALL_TESTS();
}
