// The CPU backends: one table per instruction set, chosen at run time.
//
// Stream.handle is the ThreadPool* (base/threads.h) whose threads run the loops. Every launcher completes on return.
#pragma once

#include <string_view>

#include "params/kernel_table.h"

namespace quire::cpu {

// nullptr when this build or this machine cannot run it.
const KernelTable* portable_kernels();
const KernelTable* avx2_kernels();    // AVX2, FMA, F16C
const KernelTable* avx512_kernels();  // AVX-512 F, BW, DQ, VL, VNNI and BF16
const KernelTable* amx_kernels();     // the same, and AMX-BF16 and AMX-INT8 for products

// The table of that name (portable, avx2, avx512, amx); "": the one that QUIRE_CPU_ISA names, or the best this machine
// can run. One that it cannot run, or an unknown one, throws InvalidArgument (never an illegal instruction).
const KernelTable& select_kernels(std::string_view isa = {});

}  // namespace quire::cpu
