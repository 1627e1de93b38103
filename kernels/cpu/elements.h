// The 16-bit element types as distinct types, so that loads and stores choose their conversion by overload.
//
// Decides: nothing but names, and the switch from a DType to a type. The exact scalar conversions are in base/dtype.h.
// Included outside the instruction-set regions: every function here is compiled for the baseline machine.
#pragma once

#include <cstdint>

#include "base/check.h"
#include "base/dtype.h"

namespace quire::cpu {

struct Bf16 {
  uint16_t bits;
};

struct F16 {
  uint16_t bits;
};

inline float to_float(float value) { return value; }
inline float to_float(Bf16 value) { return bf16_to_float(value.bits); }
inline float to_float(F16 value) { return f16_to_float(value.bits); }

inline void from_float(float value, float* out) { *out = value; }
inline void from_float(float value, Bf16* out) { out->bits = float_to_bf16(value); }
inline void from_float(float value, F16* out) { out->bits = float_to_f16(value); }

// Calls visit(T{}) with the element type of a floating-point dtype.
template <typename Visit>
void with_element_type(DType dtype, const Visit& visit) {
  switch (dtype) {
    case DType::f32:
      return visit(float{});
    case DType::f16:
      return visit(F16{});
    case DType::bf16:
      return visit(Bf16{});
    default:
      QUIRE_CHECK(false, "the cpu kernels compute in float32, float16 and bfloat16, not ", dtype_name(dtype));
  }
}

}  // namespace quire::cpu
