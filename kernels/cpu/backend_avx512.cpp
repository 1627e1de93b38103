// The AVX-512 (F, BW, DQ, VL, VNNI and BF16) kernels: the shared sources of kernels/cpu compiled for one instruction
// set, in a namespace of their own. The AMX table is the same one with products on tiles.
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

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined vectors inside its own AVX-512 intrinsics for mistakes (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")

namespace quire::cpu::avx512 {
namespace {

constexpr const char* kName = "avx512";

#include "cpu/vec_avx512.h"

#include "cpu/all_kernels.inl"

#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16,amx-int8")

// clang-format off
#include "cpu/gemm_amx.inl"
#include "cpu/gemm_int8_amx.inl"
#include "cpu/attention_amx.inl"
// clang-format on

#pragma GCC pop_options

constexpr KernelTable with_amx() {
  KernelTable table = kTable;
  table.name = "amx";
  table.gemm = gemm_amx_of_any_weight;
  table.paged_attention = paged_attention_amx;
  return table;
}

constexpr KernelTable kAmxTable = with_amx();

}  // namespace
}  // namespace quire::cpu::avx512

#pragma GCC pop_options

namespace quire::cpu {
namespace {

// The state of tiles is large, so Linux wants a process to ask for it (Documentation/arch/x86/xstate.rst).
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

const KernelTable* avx512_kernels() {
  static const bool supported = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                                __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
  return supported ? &avx512::kTable : nullptr;
}

const KernelTable* amx_kernels() {
  static const bool supported = avx512_kernels() != nullptr && __builtin_cpu_supports("amx-tile") &&
                                __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("amx-int8") &&
                                may_use_tiles();
  return supported ? &avx512::kAmxTable : nullptr;
}

}  // namespace quire::cpu

#else

namespace quire::cpu {

const KernelTable* avx512_kernels() { return nullptr; }
const KernelTable* amx_kernels() { return nullptr; }

}  // namespace quire::cpu

#endif
