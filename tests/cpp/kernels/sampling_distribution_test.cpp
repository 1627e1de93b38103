// 10^5 draws a combination of parameters follow its probabilities, in every instruction set.
#include "kernels/cases/sampling_distribution.h"

#include "kernels/isas.h"

namespace quire {
namespace {

class SamplingDistribution : public testing::TestWithParam<const KernelTable*> {};

TEST_P(SamplingDistribution, IsThatOfTheParameters) {
  cases::expect_distributions(100'000, {GetParam()->sample, GetParam()->sampling_workspace_bytes}, 2);
}

INSTANTIATE_TEST_SUITE_P(, SamplingDistribution, testing::ValuesIn(tables_with_own(&KernelTable::sample)), table_name);

}  // namespace
}  // namespace quire
