// RMSNorm (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016) over rows of the float32 residual stream.
//
// rms:   y = x / sqrt(mean(x^2) + eps) * weight          layer: y = (x - mean) / sqrt(var + eps) * weight + bias
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace quire {

// none: y = x, a gather and cast of rows (weight and bias must be null).
enum class NormKind : uint8_t { rms, layer, none };

struct NormParams {
  NormKind kind = NormKind::rms;
  const float* x = nullptr;  // [*, dim], rows x_stride elements apart
  int64_t x_stride = 0;
  const int32_t* row_ids = nullptr;  // [rows] rows of x to take, or null for 0, 1, ..., rows - 1
  int64_t rows = 0;
  int64_t dim = 0;
  const float* weight = nullptr;  // [dim] or null (all ones)
  const float* bias = nullptr;    // [dim] or null
  float eps = 0.0f;
  void* out = nullptr;  // [rows, dim], rows out_stride elements apart; may be x itself when out_dtype is f32
  DType out_dtype = DType::f32;
  int64_t out_stride = 0;
  bool accumulate = false;  // out += y (sandwich norms add to the residual stream); out_dtype f32 only
};

}  // namespace quire
