// The table of kernel cases: those of every backend, and those of the cpu.
#pragma once

#include "kernels/cases/attention_cases.h"
#include "kernels/cases/copy_cases.h"
#include "kernels/cases/gemm_cases.h"
#include "kernels/cases/layer_cases.h"
#include "kernels/cases/load_cases.h"
#include "kernels/cases/pool_cases.h"
#include "kernels/cases/reduce_cases.h"
#include "kernels/cases/rows_cases.h"

namespace quire::cases {

inline std::vector<CaseEntry> all_cases() {
  std::vector<CaseEntry> cases;
  add_gemm_cases(cases);
  add_attention_cases(cases);
  add_norm_cases(cases);
  add_embedding_cases(cases);
  add_embedding_part_cases(cases);
  add_rope_cases(cases);
  add_copy_cases(cases);
  add_rows_cases(cases);
  add_load_cases(cases);
  add_pool_cases(cases);
  add_reduce_cases(cases);
  return cases;
}

// Those of the cpu.
inline std::vector<CaseEntry> cpu_cases() {
  std::vector<CaseEntry> cases = all_cases();
  add_int8_gemm_cases(cases);
  add_unpack_cases(cases, DType::i8);
  return cases;
}

}  // namespace quire::cases
