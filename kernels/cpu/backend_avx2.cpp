// The AVX2 (with FMA and F16C) kernels: the shared sources of kernels/cpu compiled for one instruction set, in a
// namespace of their own.
//
// Headers come before the target region, so that no inline function of the standard library is compiled with
// instructions the machine may lack and then chosen by the linker for everybody.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/check.h"
#include "cpu/common_kernels.h"
#include "cpu/cpu_kernels.h"
#include "cpu/elements.h"
#include "cpu/layout.h"
#include "cpu/parallel.h"
#include "params/kernel_table.h"
#include "params/philox.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace quire::cpu::avx2 {
namespace {

constexpr const char* kName = "avx2";

#include "cpu/vec_avx2.h"

#include "cpu/all_kernels.inl"

}  // namespace
}  // namespace quire::cpu::avx2

#pragma GCC pop_options

namespace quire::cpu {

const KernelTable* avx2_kernels() {
  static const bool supported =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return supported ? &avx2::kTable : nullptr;
}

}  // namespace quire::cpu

#else

namespace quire::cpu {

const KernelTable* avx2_kernels() { return nullptr; }

}  // namespace quire::cpu

#endif
