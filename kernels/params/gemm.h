// Matrix products with weights that were packed once at load, and their epilogues.
//
// out[m, n] = epilogue( sum_k a[m, k] * weight[n, k] ), summed in float in an order that depends on k alone: a row of
// the result has the same bits whatever m is, whichever other rows there are and however many threads work, unless
// GemmParams::batch_invariant is given up.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace quire {

// A weight of DType::i8 is rounded when it is packed: of every row, w = scale * q with scale = max|w| / 127 and q a
// whole number in [-127, 127], the nearest to w * (127 / max|w|). Activations are rounded in the same way by the
// product, each run of kInt8Run along k with a scale of its own.
constexpr int64_t kInt8Run = 128;

enum class Activation : uint8_t { none, silu, gelu, gelu_tanh, relu, tanh };

// A [rows, cols] matrix in the layout of the backend that packed it. `rows` are the outputs (n), `cols` the inputs (k).
// A gated pair (gate and up projection in one) has rows = 2 * width, interleaved as the backend likes; its product is
// activation(gate) * up, of `width` columns.
struct PackedWeight {
  void* data = nullptr;  // backend layout, packed_weight_bytes(rows, cols, dtype, gated) bytes, 64-byte aligned
  DType dtype = DType::f32;
  bool gated = false;
  int64_t rows = 0;
  int64_t cols = 0;
};

enum class PackPart : uint8_t { whole, gate, up };

// Copies a source matrix into rows [row_begin, row_begin + rows) of `weight` (for gated weights: of its gate or up
// half), converting the element type. Strides are in elements and serve slices and transposed sources (GPT-2's Conv1D).
struct PackWeightParams {
  const void* source = nullptr;  // [rows, cols] at source + r * row_stride + c * col_stride
  DType source_dtype = DType::f32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;
  int64_t col_stride = 1;
  PackPart part = PackPart::whole;
  int64_t row_begin = 0;
  PackedWeight weight;
};

// The way back, for whoever looks at weights: rows [row_begin, row_begin + rows) of `weight` or of its gate or up half,
// without gaps, as float32. A weight of i8 gives scale * q.
struct UnpackWeightParams {
  PackedWeight weight;
  PackPart part = PackPart::whole;
  int64_t row_begin = 0;
  int64_t rows = 0;
  float* out = nullptr;  // [rows, weight.cols]
};

struct GemmParams {
  const void* a = nullptr;  // [m, weight.cols], rows a_stride elements apart, element type a_dtype()
  int64_t a_stride = 0;
  int64_t m = 0;
  PackedWeight weight;
  const float* bias = nullptr;  // [weight.rows] or null; gated: gate's width values, then up's
  Activation activation = Activation::none;
  float softcap = 0.0f;  // > 0: softcap * tanh(x / softcap) after everything else (final logits of Gemma 2)
  float scale = 1.0f;    // multiplies the sum before the bias
  void* out = nullptr;   // [m, n] with n = weight.rows, or the width for gated weights; rows out_stride elements apart
  DType out_dtype = DType::f32;  // f32, or a_dtype()
  int64_t out_stride = 0;
  bool accumulate = false;  // out += result; out_dtype f32 only (the residual stream)
  // false: a product of many rows may go to a library that is faster and whose bits are not those of few rows; then a
  // row's bits depend on how its prompt was cut into launches. Ignored where there is no such library, or where the
  // workspace is smaller than KernelTable::gemm_library_workspace_bytes.
  bool batch_invariant = true;
  // Of weights of i8: what a is made of, and KernelTable::int8_rows_bytes(m, weight.cols) bytes, 64-byte aligned.
  DType int8_a_dtype = DType::f32;
  void* int8_rows = nullptr;
  // Optional: lets several blocks share the sums of a narrow weight (KernelTable::gemm_workspace_bytes); same bits.
  void* workspace = nullptr;
  size_t workspace_bytes = 0;

  DType a_dtype() const { return weight.dtype == DType::i8 ? int8_a_dtype : weight.dtype; }
};

}  // namespace quire
