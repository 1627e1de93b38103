// Copies weights into panels (layout.h), once, at load. The same layout for every instruction set.
//
// A call fills whole columns of panels: its own rows of the matrix, the zero of an odd last k, and, when it holds the
// last row of its half, the zero columns that pad the last panel. So parts (q, k, v; gate, up) come in any order.
#include <cstring>

#include "cpu/common_kernels.h"
#include "cpu/elements.h"
#include "cpu/layout.h"
#include "cpu/parallel.h"

namespace quire::cpu {
namespace {

// Where a row of the source goes.
struct Column {
  int64_t panel;
  int64_t column;
};

Column column_of(const PackWeightParams& p, int64_t row) {
  if (!p.weight.gated) return {row / kPanelColumns, row % kPanelColumns};
  return {row / kGatedColumns, row % kGatedColumns + (p.part == PackPart::up ? kGatedColumns : 0)};
}

// Writes row `row` of the packed half from `source` (null: zeros), k in steps of its layout.
template <typename From, typename To>
void pack_row(const PackWeightParams& p, const From* source, int64_t row) {
  const DType dtype = p.weight.dtype;
  const Column target = column_of(p, row);
  To* panel = static_cast<To*>(p.weight.data) + target.panel * panel_elements(p.cols, dtype);
  const int64_t padded = padded_cols(p.cols, dtype);
  const int64_t pair = is_paired(dtype) ? 2 : 1;
  To* out = panel + target.column * pair;
  for (int64_t k = 0; k < padded; k += pair, out += pair * kPanelColumns) {
    for (int64_t i = 0; i < pair; ++i) {
      const float value = source != nullptr && k + i < p.cols ? to_float(source[(k + i) * p.col_stride]) : 0.0f;
      from_float(value, out + i);
    }
  }
}

// The common case without arithmetic: bf16 to bf16, contiguous along k. Rows of one panel go together in runs of 32
// elements, a cache line of each, so that what is written is still in the first-level cache when its neighbour comes.
void pack_bf16_rows(const PackWeightParams& p, int64_t begin, int64_t end) {
  constexpr int64_t kRun = 32;
  const uint16_t* source = static_cast<const uint16_t*>(p.source);
  uint16_t* data = static_cast<uint16_t*>(p.weight.data);
  const int64_t even_cols = p.cols / 2 * 2;
  for (int64_t k = 0; k < even_cols; k += kRun) {
    const int64_t run_end = lesser(even_cols, k + kRun);
    for (int64_t r = begin; r < end; ++r) {
      const Column target = column_of(p, p.row_begin + r);
      const uint16_t* from = source + r * p.row_stride;
      uint16_t* to = data + target.panel * panel_elements(p.cols, DType::bf16) + target.column * 2;
      for (int64_t i = k; i < run_end; i += 2) std::memcpy(to + i * kPanelColumns, from + i, 4);
    }
  }
  if (even_cols == p.cols) return;
  for (int64_t r = begin; r < end; ++r) {
    const Column target = column_of(p, p.row_begin + r);
    uint16_t* to = data + target.panel * panel_elements(p.cols, DType::bf16) + target.column * 2;
    to[even_cols * kPanelColumns] = source[r * p.row_stride + even_cols];
    to[even_cols * kPanelColumns + 1] = 0;
  }
}

void pack_rows(const PackWeightParams& p, int64_t begin, int64_t end) {
  if (p.source_dtype == DType::bf16 && p.weight.dtype == DType::bf16 && p.col_stride == 1) {
    return pack_bf16_rows(p, begin, end);
  }
  with_element_type(p.source_dtype, [&](auto from) {
    with_element_type(p.weight.dtype, [&](auto to) {
      const auto* source = static_cast<const decltype(from)*>(p.source);
      for (int64_t r = begin; r < end; ++r) {
        pack_row<decltype(from), decltype(to)>(p, source + r * p.row_stride, p.row_begin + r);
      }
    });
  });
}

void pad_last_panel(const PackWeightParams& p) {
  const int64_t rows = num_outputs(p.weight);
  const int64_t padded = num_panels(p.weight) * outputs_per_panel(p.weight);
  with_element_type(p.weight.dtype, [&](auto to) {
    for (int64_t row = rows; row < padded; ++row) pack_row<float, decltype(to)>(p, nullptr, row);
  });
}

}  // namespace

size_t packed_weight_bytes(int64_t rows, int64_t cols, DType dtype, bool gated) {
  PackedWeight weight;
  weight.dtype = dtype;
  weight.gated = gated;
  weight.rows = rows;
  weight.cols = cols;
  if (dtype == DType::i8) return packed_int8_bytes(weight);
  return static_cast<size_t>(num_panels(weight) * panel_elements(cols, dtype)) * dtype_bytes(dtype);
}

void pack_weight(const PackWeightParams& p, Stream stream) {
  const int64_t half_rows = num_outputs(p.weight);
  QUIRE_CHECK((p.part == PackPart::whole) != p.weight.gated, "a gated weight is packed as gate and up");
  QUIRE_CHECK(!p.weight.gated || p.weight.rows % 2 == 0, "rows ", p.weight.rows);
  QUIRE_CHECK(p.cols == p.weight.cols, p.cols, " != ", p.weight.cols);
  QUIRE_CHECK(p.row_begin >= 0 && p.rows >= 0 && p.row_begin + p.rows <= half_rows, p.row_begin, " + ", p.rows, " > ",
              half_rows);
  if (p.weight.dtype == DType::i8) return pack_int8_weight(p, stream);
  for (const DType dtype : {p.source_dtype, p.weight.dtype}) with_element_type(dtype, [](auto) {});
  // Ranges are whole panels' worth of rows where the begin allows it.
  const int64_t num_runs = ceil_div(p.rows, kPanelColumns);
  for_each_task(stream, num_runs, static_cast<double>(p.rows) * static_cast<double>(p.cols),
                [&](int64_t run) { pack_rows(p, run * kPanelColumns, lesser(p.rows, (run + 1) * kPanelColumns)); });
  if (p.row_begin + p.rows == half_rows) pad_last_panel(p);
}

}  // namespace quire::cpu
