// 10^5 draws a combination of parameters follow its probabilities, in every instruction set.
#include "kernels/cases/sampling_distribution.h"

#include "base/threads.h"
#include "kernels/isas.h"

namespace quire {
namespace {

class SamplingDistribution : public testing::TestWithParam<const KernelTable*> {};

TEST_P(SamplingDistribution, IsThatOfTheParameters) {
  const KernelTable& table = *GetParam();
  ThreadPool pool(2);
  cases::expect_distributions(100'000, [&](const std::vector<float>& logits, const std::vector<SamplingRow>& rows) {
    const auto vocab_size = static_cast<int32_t>(logits.size());
    const auto num_rows = static_cast<int32_t>(rows.size());
    std::vector<float> all;
    all.reserve(rows.size() * logits.size());
    for (size_t r = 0; r < rows.size(); ++r) all.insert(all.end(), logits.begin(), logits.end());
    std::vector<int32_t> tokens(rows.size(), -1);
    cases::Buffer workspace(DType::u8, static_cast<int64_t>(table.sampling_workspace_bytes(num_rows, vocab_size, 2)));
    table.sample({.logits = all.data(),
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

INSTANTIATE_TEST_SUITE_P(, SamplingDistribution, testing::ValuesIn(tables_with_own(&KernelTable::sample)), table_name);

}  // namespace
}  // namespace quire
