// The wgmma instructions m64nNk16 of hopper.h as inline PTX, N in {16, 32, 64, 80, 96, 128, 192, 256}: nothing but
// operand lists. d has N / 2 registers, so the operands after it are numbered from N / 2 on.
#pragma once

#include <cstdint>

#include "cuda/simt/tc.h"

namespace quire::simt {

template <typename Tag, int kColumns>
struct WgmmaInstruction;

// clang-format off
#define QUIRE_REGISTERS_8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define QUIRE_REGISTERS_16 QUIRE_REGISTERS_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define QUIRE_REGISTERS_24 QUIRE_REGISTERS_16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define QUIRE_REGISTERS_32 QUIRE_REGISTERS_24 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define QUIRE_REGISTERS_40 QUIRE_REGISTERS_32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define QUIRE_REGISTERS_48 QUIRE_REGISTERS_40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define QUIRE_REGISTERS_56 QUIRE_REGISTERS_48 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define QUIRE_REGISTERS_64 QUIRE_REGISTERS_56 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define QUIRE_REGISTERS_72 QUIRE_REGISTERS_64 ",%64,%65,%66,%67,%68,%69,%70,%71"
#define QUIRE_REGISTERS_80 QUIRE_REGISTERS_72 ",%72,%73,%74,%75,%76,%77,%78,%79"
#define QUIRE_REGISTERS_88 QUIRE_REGISTERS_80 ",%80,%81,%82,%83,%84,%85,%86,%87"
#define QUIRE_REGISTERS_96 QUIRE_REGISTERS_88 ",%88,%89,%90,%91,%92,%93,%94,%95"
#define QUIRE_REGISTERS_104 QUIRE_REGISTERS_96 ",%96,%97,%98,%99,%100,%101,%102,%103"
#define QUIRE_REGISTERS_112 QUIRE_REGISTERS_104 ",%104,%105,%106,%107,%108,%109,%110,%111"
#define QUIRE_REGISTERS_120 QUIRE_REGISTERS_112 ",%112,%113,%114,%115,%116,%117,%118,%119"
#define QUIRE_REGISTERS_128 QUIRE_REGISTERS_120 ",%120,%121,%122,%123,%124,%125,%126,%127"
#define QUIRE_OUT_8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
// clang-format on
#define QUIRE_OUT_16(i) QUIRE_OUT_8(i), QUIRE_OUT_8(i + 8)
#define QUIRE_OUT_32(i) QUIRE_OUT_16(i), QUIRE_OUT_16(i + 16)
#define QUIRE_OUT_40(i) QUIRE_OUT_32(i), QUIRE_OUT_8(i + 32)
#define QUIRE_OUT_48(i) QUIRE_OUT_32(i), QUIRE_OUT_16(i + 32)
#define QUIRE_OUT_64(i) QUIRE_OUT_32(i), QUIRE_OUT_32(i + 32)
#define QUIRE_OUT_96(i) QUIRE_OUT_64(i), QUIRE_OUT_32(i + 64)
#define QUIRE_OUT_128(i) QUIRE_OUT_64(i), QUIRE_OUT_64(i + 64)

// o0 ... o6: the numbers of the operands after d. A from shared memory: a, b, accumulate, major of A, major of B.
// A from registers: a[0..3], b, accumulate, major of B.
#define QUIRE_WGMMA(TAG, TYPE, N, D, o0, o1, o2, o3, o4, o5, o6)                                                    \
  template <>                                                                                                       \
  struct WgmmaInstruction<TAG, N> {                                                                                 \
    template <int kAMajor, int kBMajor>                                                                             \
    static __device__ __forceinline__ void run(float (&d)[D], uint64_t a, uint64_t b, int accumulate) {             \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" o2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N             \
                   "k16.f32." TYPE "." TYPE " {" QUIRE_REGISTERS_##D "}, %" o0 ", %" o1 ", p, 1, 1, %" o3 ", %" o4  \
                                                                     ";\n}"                                         \
                   : QUIRE_OUT_##D(0)                                                                               \
                   : "l"(a), "l"(b), "r"(accumulate), "n"(kAMajor), "n"(kBMajor));                                  \
    }                                                                                                               \
    template <int kBMajor>                                                                                          \
    static __device__ __forceinline__ void run(float (&d)[D], const uint32_t (&a)[4], uint64_t b, int accumulate) { \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" o5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N             \
                   "k16.f32." TYPE "." TYPE " {" QUIRE_REGISTERS_##D "}, {%" o0 ",%" o1 ",%" o2 ",%" o3 "}, %" o4   \
                                                                     ", p, 1, 1, %" o6 ";\n}"                       \
                   : QUIRE_OUT_##D(0)                                                                               \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kBMajor));            \
    }                                                                                                               \
  };
#define QUIRE_WGMMA_TYPES(...)               \
  QUIRE_WGMMA(bf16_tag, "bf16", __VA_ARGS__) \
  QUIRE_WGMMA(f16_tag, "f16", __VA_ARGS__)

QUIRE_WGMMA_TYPES(16, 8, "8", "9", "10", "11", "12", "13", "14")
QUIRE_WGMMA_TYPES(32, 16, "16", "17", "18", "19", "20", "21", "22")
QUIRE_WGMMA_TYPES(64, 32, "32", "33", "34", "35", "36", "37", "38")
QUIRE_WGMMA_TYPES(80, 40, "40", "41", "42", "43", "44", "45", "46")
QUIRE_WGMMA_TYPES(96, 48, "48", "49", "50", "51", "52", "53", "54")
QUIRE_WGMMA_TYPES(128, 64, "64", "65", "66", "67", "68", "69", "70")
QUIRE_WGMMA_TYPES(192, 96, "96", "97", "98", "99", "100", "101", "102")
QUIRE_WGMMA_TYPES(256, 128, "128", "129", "130", "131", "132", "133", "134")

#undef QUIRE_WGMMA_TYPES
#undef QUIRE_WGMMA

}  // namespace quire::simt
