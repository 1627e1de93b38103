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

inline std::string table_name(const testing::TestParamInfo<const KernelTable*>& instance) {
  return instance.param->name;
}

}  // namespace quire
