// Draws of the CUDA sampling kernels, emulated, follow the probabilities of their parameters. A thousand a combination:
// in emulation one takes half a millisecond. That they are the CPU's draws, sampling_simt_test.cpp compares.
#include "cuda/sampling/sampling.h"
#include "cuda/simt/engine.h"
#include "kernels/cases/sampling_distribution.h"

namespace quire {
namespace {

TEST(SamplingDistributionSimt, IsThatOfTheParameters) {
  simt::set_order(simt::Order::forward);
  cases::expect_distributions(1000, {cuda::sample, cuda::sampling_workspace_bytes}, 1);
}

}  // namespace
}  // namespace quire
