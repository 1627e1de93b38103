// The kernel tables that this machine can run, as parameters of tests.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cpu/cpu_kernels.h"

namespace quire {

inline std::vector<const KernelTable*> runnable_tables() {
  std::vector<const KernelTable*> tables;
  for (const KernelTable* table :
       {cpu::portable_kernels(), cpu::avx2_kernels(), cpu::avx512_kernels(), cpu::amx_kernels()}) {
    if (table != nullptr) tables.push_back(table);
  }
  return tables;
}

// Those without the tables that have a kernel in common with another one: AMX is AVX-512 but for its product.
inline std::vector<const KernelTable*> tables_with_own(auto KernelTable::* kernel) {
  std::vector<const KernelTable*> tables;
  for (const KernelTable* table : runnable_tables()) {
    bool is_known = false;
    for (const KernelTable* other : tables) is_known = is_known || other->*kernel == table->*kernel;
    if (!is_known) tables.push_back(table);
  }
  return tables;
}

inline std::string table_name(const testing::TestParamInfo<const KernelTable*>& instance) {
  return instance.param->name;
}

}  // namespace quire
