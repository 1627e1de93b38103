// Reads weights out of their panels (layout.h), when somebody looks at a model. The same for every instruction set.
//
// The inverse of pack.cpp and pack_int8.cpp, which it knows nothing of; any range of rows may be asked for.
#include "cpu/common_kernels.h"
#include "cpu/elements.h"
#include "cpu/layout.h"
#include "cpu/parallel.h"

namespace quire::cpu {
namespace {

void unpack_int8_row(const int8_t* panel, int64_t column, int64_t cols, float* out) {
  const int64_t padded = padded_byte_cols(cols);
  const float scale = reinterpret_cast<const float*>(panel + padded * kPanelColumns)[column];
  for (int64_t k = 0; k < cols; ++k) {
    const int64_t group = k / kByteGroup * kByteGroup;
    out[k] = scale * static_cast<float>(panel[group * kPanelColumns + column * kByteGroup + k % kByteGroup]);
  }
}

void unpack_row(const PackedWeight& weight, int64_t panel, int64_t column, float* out) {
  if (weight.dtype == DType::i8) {
    const auto* data = static_cast<const int8_t*>(weight.data);
    return unpack_int8_row(data + panel * byte_panel_bytes(weight.cols), column, weight.cols, out);
  }
  with_element_type(weight.dtype, [&](auto type) {
    const auto* data = static_cast<const decltype(type)*>(weight.data);
    const auto* elements = data + panel * panel_elements(weight.cols, weight.dtype);
    for (int64_t k = 0; k < weight.cols; ++k) out[k] = to_float(elements[panel_offset(k, column, weight.dtype)]);
  });
}

}  // namespace

void unpack_weight(const UnpackWeightParams& p, Stream stream) {
  QUIRE_CHECK((p.part == PackPart::whole) != p.weight.gated, "a gated weight is read as gate and up");
  QUIRE_CHECK(p.row_begin >= 0 && p.rows >= 0 && p.row_begin + p.rows <= num_outputs(p.weight), p.row_begin, " + ",
              p.rows, " > ", num_outputs(p.weight));
  const int64_t width = outputs_per_panel(p.weight);
  const int64_t half = p.part == PackPart::up ? kGatedColumns : 0;
  const int64_t num_runs = ceil_div(p.rows, kPanelColumns);
  for_each_task(stream, num_runs, static_cast<double>(p.rows) * static_cast<double>(p.weight.cols), [&](int64_t run) {
    const int64_t end = lesser(p.rows, (run + 1) * kPanelColumns);
    for (int64_t r = run * kPanelColumns; r < end; ++r) {
      const int64_t row = p.row_begin + r;
      unpack_row(p.weight, row / width, half + row % width, p.out + r * p.weight.cols);
    }
  });
}

}  // namespace quire::cpu
