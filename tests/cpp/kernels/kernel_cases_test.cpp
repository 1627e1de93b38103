// Every case of the table on every instruction set of this machine, with one and with three threads.
#include <gtest/gtest.h>

#include <set>

#include "base/threads.h"
#include "cpu/cpu_kernels.h"
#include "kernels/cases/all_cases.h"
#include "kernels/isas.h"

namespace quire {
namespace {

// What AMX shares with AVX-512 is tested there.
bool is_tested(const cases::CaseEntry& entry, const KernelTable& table) {
  return !entry.is_benchmark && (&table != cpu::amx_kernels() || entry.name.starts_with("gemm"));
}

class KernelCases : public testing::TestWithParam<const KernelTable*> {};

TEST_P(KernelCases, MatchTheirReference) {
  ThreadPool one(1), three(3);
  std::set<std::string> names;
  for (const cases::CaseEntry& entry : cases::cpu_cases()) {
    EXPECT_TRUE(names.insert(entry.name).second) << "two cases are called " << entry.name;
    if (!is_tested(entry, *GetParam())) continue;
    for (ThreadPool* pool : {&one, &three}) {
      const auto kernel_case = entry.make(*GetParam(), Stream{pool});
      kernel_case->reset();
      kernel_case->run(*GetParam(), Stream{pool});
      EXPECT_EQ(kernel_case->check(), "") << entry.name << " with " << pool->num_threads() << " threads";
    }
  }
}

// A checker that accepts anything would make the test above worthless.
TEST_P(KernelCases, UntouchedOutputsFail) {
  for (const cases::CaseEntry& entry : cases::cpu_cases()) {
    if (!is_tested(entry, *GetParam())) continue;
    const auto kernel_case = entry.make(*GetParam(), Stream{});
    kernel_case->reset();
    EXPECT_NE(kernel_case->check(), "") << entry.name;
  }
}

INSTANTIATE_TEST_SUITE_P(, KernelCases, testing::ValuesIn(runnable_tables()), table_name);

}  // namespace
}  // namespace quire
