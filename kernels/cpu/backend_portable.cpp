// The portable kernels: the shared sources of kernels/cpu compiled for one instruction set, in a namespace of their
// own.
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

namespace quire::cpu::portable {
namespace {

constexpr const char* kName = "portable";

#include "cpu/vec_portable.h"

#include "cpu/all_kernels.inl"

}  // namespace
}  // namespace quire::cpu::portable

namespace quire::cpu {

const KernelTable* portable_kernels() { return &portable::kTable; }

}  // namespace quire::cpu
