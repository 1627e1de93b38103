// Rounds weights to bytes and packs them (layout.h), once, at load. The same bytes for every instruction set.
//
// A scale is of a whole row, so a call brings all k of its rows; parts (q, k, v; gate, up) come in any order, as in
// pack.cpp, which checks what is asked for.
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "cpu/common_kernels.h"
#include "cpu/elements.h"
#include "cpu/layout.h"
#include "cpu/parallel.h"

namespace quire::cpu {
namespace {

// Rows that share a panel, rounded, before they are dealt out to its groups of k.
class RoundedRows {
 public:
  explicit RoundedRows(int64_t cols)
      : cols_(cols),
        padded_(padded_byte_cols(cols)),
        values_(std::make_unique<float[]>(static_cast<size_t>(cols))),
        bytes_(std::make_unique<int8_t[]>(static_cast<size_t>(padded_ * kPanelColumns))) {}

  template <typename From>
  void round(const PackWeightParams& p, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const From* source = static_cast<const From*>(p.source) + r * p.row_stride;
      for (int64_t k = 0; k < cols_; ++k) values_[static_cast<size_t>(k)] = to_float(source[k * p.col_stride]);
      round_row(r - begin);
    }
  }

  // Rows [0, rows) become columns [column, column + rows) of a panel.
  void store(int8_t* panel, int64_t column, int64_t rows) const {
    for (int64_t k = 0; k < padded_; k += kByteGroup) {
      int8_t* to = panel + k * kPanelColumns + column * kByteGroup;
      for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * kByteGroup, row(r) + k, kByteGroup);
    }
    float* scales = reinterpret_cast<float*>(panel + padded_ * kPanelColumns);
    for (int64_t r = 0; r < rows; ++r) scales[column + r] = scales_[r];
  }

 private:
  int8_t* row(int64_t r) const { return bytes_.get() + r * padded_; }

  void round_row(int64_t r) {
    float largest = 0.0f;
    bool is_finite = true;
    for (int64_t k = 0; k < cols_; ++k) {
      const float size = std::fabs(values_[static_cast<size_t>(k)]);
      largest = largest < size ? size : largest;
      is_finite &= size <= std::numeric_limits<float>::max();
    }
    int8_t* out = row(r);
    std::memset(out, 0, static_cast<size_t>(padded_));
    scales_[r] = is_finite ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
    const float inverse = 127.0f / largest;
    if (!is_finite || !(inverse <= std::numeric_limits<float>::max())) return;
    // Adding 1.5 * 2^23 leaves the nearest whole number in the lowest bits.
    constexpr float kMagic = 0x1.8p23f;
    for (int64_t k = 0; k < cols_; ++k) {
      const float shifted = values_[static_cast<size_t>(k)] * inverse + kMagic;
      int32_t bits;
      std::memcpy(&bits, &shifted, sizeof(bits));
      out[k] = static_cast<int8_t>(bits);
    }
  }

  int64_t cols_, padded_;
  std::unique_ptr<float[]> values_;
  std::unique_ptr<int8_t[]> bytes_;
  float scales_[kPanelColumns] = {};
};

int8_t* panel_of(const PackedWeight& weight, int64_t panel) {
  return static_cast<int8_t*>(weight.data) + panel * byte_panel_bytes(weight.cols);
}

// Columns that no row of the matrix has.
void pad_last_panel(const PackWeightParams& p, int64_t half) {
  const int64_t width = outputs_per_panel(p.weight), rows = num_outputs(p.weight);
  const int64_t used = rows % width;
  if (used == 0) return;
  int8_t* panel = panel_of(p.weight, rows / width);
  const int64_t padded = padded_byte_cols(p.cols);
  for (int64_t k = 0; k < padded; k += kByteGroup) {
    int8_t* to = panel + k * kPanelColumns + (half + used) * kByteGroup;
    std::memset(to, 0, static_cast<size_t>((width - used) * kByteGroup));
  }
  float* scales = reinterpret_cast<float*>(panel + padded * kPanelColumns);
  for (int64_t c = used; c < width; ++c) scales[half + c] = 0.0f;
}

}  // namespace

size_t packed_int8_bytes(const PackedWeight& weight) {
  return static_cast<size_t>(num_panels(weight) * byte_panel_bytes(weight.cols));
}

size_t int8_rows_bytes(int64_t m, int64_t cols) { return static_cast<size_t>(m * ByteRows(nullptr, cols).stride); }

void pack_int8_weight(const PackWeightParams& p, Stream stream) {
  const int64_t width = outputs_per_panel(p.weight);
  const int64_t half = p.part == PackPart::up ? kGatedColumns : 0;
  const int64_t end = p.row_begin + p.rows;
  const int64_t first_panel = p.row_begin / width, num_panels = p.rows == 0 ? 0 : ceil_div(end, width) - first_panel;
  for_each_task(stream, num_panels, static_cast<double>(p.rows) * static_cast<double>(p.cols), [&](int64_t task) {
    const int64_t panel = first_panel + task;
    const int64_t row = greater(p.row_begin, panel * width), last = lesser(end, (panel + 1) * width);
    RoundedRows rows(p.cols);
    with_element_type(p.source_dtype,
                      [&](auto from) { rows.round<decltype(from)>(p, row - p.row_begin, last - p.row_begin); });
    rows.store(panel_of(p.weight, panel), half + row - panel * width, last - row);
  });
  if (end == num_outputs(p.weight)) pad_last_panel(p, half);
}

}  // namespace quire::cpu
