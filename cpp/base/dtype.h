// Element types and the exact conversions between them.
//
// Decides: names, sizes, rounding (to nearest even). Does not know: tensors, devices. Pure functions, any thread.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace quire {

enum class DType : uint8_t { f32, f16, bf16, f64, i64, i32, u8, boolean, i8 };

constexpr size_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f16:
    case DType::bf16:
      return 2;
    case DType::u8:
    case DType::boolean:
    case DType::i8:
      return 1;
  }
  return 0;
}

// "float32", "float16", "bfloat16" ...: the spelling of config.json and of Python.
std::string_view dtype_name(DType dtype);
// Accepts "float32"/"float"/"f32", "float16"/"half"/"f16", "bfloat16"/"bf16"; throws InvalidArgument "Unknown dtype:
// x".
DType parse_dtype(std::string_view name);

constexpr uint16_t float_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // keep NaN a NaN
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

constexpr float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t float_to_f16(float value);
float f16_to_float(uint16_t bits);

}  // namespace quire
