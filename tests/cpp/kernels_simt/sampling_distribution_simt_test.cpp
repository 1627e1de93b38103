// Draws of the CUDA sampling kernels, emulated, follow the probabilities of their parameters. A thousand a combination:
// in emulation one takes half a millisecond. That they are the CPU's draws, sampling_simt_test.cpp compares.
#include "base/threads.h"
#include "cuda/sampling/sampling.h"
#include "cuda/simt/engine.h"
#include "kernels/cases/sampling_distribution.h"

namespace quire {
namespace {

TEST(SamplingDistributionSimt, IsThatOfTheParameters) {
  simt::set_order(simt::Order::forward);
  ThreadPool pool(1);
  cases::expect_distributions(1000, [&](const std::vector<float>& logits, const std::vector<SamplingRow>& rows) {
    const auto vocab_size = static_cast<int32_t>(logits.size());
    const auto num_rows = static_cast<int32_t>(rows.size());
    std::vector<float> all;
    all.reserve(rows.size() * logits.size());
    for (size_t r = 0; r < rows.size(); ++r) all.insert(all.end(), logits.begin(), logits.end());
    std::vector<int32_t> tokens(rows.size(), -1);
    cases::Buffer workspace(DType::u8, static_cast<int64_t>(cuda::sampling_workspace_bytes(num_rows, vocab_size, 1)));
    cuda::sample({.logits = all.data(),
                  .logits_stride = vocab_size,
                  .vocab_size = vocab_size,
                  .num_rows = num_rows,
                  .rows = rows.data(),
                  .token_ids = tokens.data(),
                  .workspace = workspace.data(),
                  .workspace_bytes = workspace.size_bytes()},
                 Stream{&pool});
    return tokens;
  });
}

}  // namespace
}  // namespace quire
