// Products with weights of i8: rows of activations are rounded to bytes first, then every step is a dot product of
// bytes.
//
// The products of a run of kInt8Run k are summed exactly, in whole numbers; the sums of the runs are scaled and added
// in float, one after the other. So the bits of an element depend on its row of a and its column alone, and they are
// the same whether dots of vectors or tiles (gemm_int8_amx.inl) made the whole numbers. Tiles of rows and panels are
// those of gemm.inl.

// A run whose values are all smaller than this counts as zeros.
constexpr float kSmallestByteScale = 1e-30f;

// Rounds the run of `count` values at `values`; infinities and NaN make all that it touches NaN.
static void quantize_run(const float* values, int64_t count, int8_t* out, float* scale, int32_t* offset) {
  const Vec::F infinity = Vec::set1(__builtin_inff());
  Vec::F most = Vec::zero();
  for (int64_t i = 0; i < count; i += Vec::kWidth) {
    most = Vec::max(most, Vec::nan_to(Vec::abs(Vec::load(values + i)), infinity));
  }
  const float largest = Vec::reduce_max(most);
  const bool is_finite = largest < __builtin_inff();
  *offset = 0;
  *scale = is_finite ? 0.0f : __builtin_nanf("");
  if (!is_finite || largest < kSmallestByteScale) {
    memset(out, 0, static_cast<size_t>(count));
    return;
  }
  *scale = largest / 127.0f;
  const Vec::F inverse = Vec::set1(127.0f / largest);
  Vec::F sum = Vec::zero();
  for (int64_t i = 0; i < count; i += Vec::kWidth) {
    const Vec::F x = Vec::round(Vec::mul(Vec::load(values + i), inverse));
    sum = Vec::add(sum, x);
    Vec::store_bytes(out + i, x);
  }
  *offset = -Vec::kByteOffset * static_cast<int32_t>(Vec::reduce_add(sum));
}

template <typename T>
static void quantize_row(const T* a, int64_t k, const ByteRows& rows, int64_t row) {
  alignas(64) float values[kInt8Run];
  for (int64_t run = 0; run < rows.num_runs; ++run) {
    const int64_t begin = run * kInt8Run, count = lesser(kInt8Run, rows.cols - begin);
    for (int64_t i = 0; i < count; i += Vec::kWidth) {
      const int64_t left = k - begin - i;
      Vec::store(values + i, left > 0 ? load_up_to(a + begin + i, left) : Vec::zero());
    }
    quantize_run(values, count, rows.values(row) + begin, rows.scales(row) + run, rows.offsets(row) + run);
  }
}

template <typename T>
static void quantize_rows_of(const GemmParams& g, const ByteRows& rows, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    quantize_row(static_cast<const T*>(g.a) + r * g.a_stride, g.weight.cols, rows, r);
  }
}

static void quantize_rows(const GemmParams& g, const ByteRows& rows, int64_t begin, int64_t end) {
  switch (g.int8_a_dtype) {
    case DType::bf16:
      return quantize_rows_of<Bf16>(g, rows, begin, end);
    case DType::f16:
      return quantize_rows_of<F16>(g, rows, begin, end);
    default:
      return quantize_rows_of<float>(g, rows, begin, end);
  }
}

static ByteRows quantize_activations(const GemmParams& g, Stream stream) {
  const ByteRows rows(g.int8_rows, g.weight.cols);
  for_each_range(stream, g.m, static_cast<double>(g.m) * static_cast<double>(rows.cols) * 0.15,
                 [&](int64_t begin, int64_t end) { quantize_rows(g, rows, begin, end); });
  return rows;
}

// sum (+)= scale * whole: how the runs of a row add up, in every product with weights of i8.
[[gnu::always_inline]] static inline Vec::F add_run(Vec::F sum, Vec::F whole, Vec::F scale, bool is_first) {
  return is_first ? Vec::mul(whole, scale) : Vec::fma(whole, scale, sum);
}

// The last run's sum is scaled once more, by column.
static inline const float* byte_column_scales(const PackedWeight& weight, int64_t panel) {
  const int8_t* next = static_cast<const int8_t*>(weight.data) + (panel + 1) * byte_panel_bytes(weight.cols);
  return reinterpret_cast<const float*>(next) - kPanelColumns;
}

// The epilogue of `rows` rows of a panel.
static void finish_bytes(const GemmParams& g, const float* tile, int rows, int64_t row, int64_t panel) {
  if (g.out_dtype == DType::bf16) return finish_as<Bf16>(g, tile, rows, row, panel);
  if (g.out_dtype == DType::f16) return finish_as<F16>(g, tile, rows, row, panel);
  finish_as<float>(g, tile, rows, row, panel);
}

template <int R, int P>
struct ByteSums {
  Vec::I sum[R][P * kPanelVecs];
};

// Four k of all columns.
template <int R, int P>
[[gnu::always_inline]] static inline void step_bytes(ByteSums<R, P>& sums, const int8_t* a, int64_t a_stride,
                                                     const int8_t* b, int64_t panel_stride) {
  Vec::U columns[P * kPanelVecs];
#pragma GCC unroll 16
  for (int j = 0; j < P * kPanelVecs; ++j) {
    columns[j] = Vec::load_bytes(b + j / kPanelVecs * panel_stride + j % kPanelVecs * Vec::kWidth * kByteGroup);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    uint32_t bits;
    memcpy(&bits, a + r * a_stride, sizeof(bits));
    const Vec::U four = Vec::set1_u(bits);
#pragma GCC unroll 16
    for (int j = 0; j < P * kPanelVecs; ++j) sums.sum[r][j] = Vec::dot_bytes(sums.sum[r][j], columns[j], four);
  }
}

// tile[p][r][32] = sums of rows [row, row + R) with P neighbouring panels, whose scales are there. As in gemm.inl, the
// last bytes of each panel prefetch the panels that come next.
template <int R, int P>
static void multiply_bytes(const ByteRows& rows, int64_t row, const int8_t* b, int64_t panel_stride, float* tile) {
  constexpr int kGroupBytes = kByteGroup * kPanelColumns;
  const int8_t* a = rows.values(row);
  const float* column_scales = reinterpret_cast<const float*>(b + panel_stride) - kPanelColumns;
  const int64_t scale_stride = panel_stride / static_cast<int64_t>(sizeof(float));
  const int64_t last_own = greater(0, rows.cols - kPrefetchBytes / kPanelColumns);
  for (int64_t run = 0; run < rows.num_runs; ++run) {
    ByteSums<R, P> sums;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec::I offset = Vec::set1_i(rows.offsets(row + r)[run]);
#pragma GCC unroll 16
      for (int j = 0; j < P * kPanelVecs; ++j) sums.sum[r][j] = offset;
    }
    const int64_t end = lesser(rows.cols, (run + 1) * kInt8Run);
    for (int64_t k = run * kInt8Run; k < end; k += kByteGroup, b += kGroupBytes) {
      const int64_t distance = kPrefetchBytes + (k >= last_own ? (P - 1) * panel_stride : 0);
      prefetch_step<P>(b, panel_stride, distance, kGroupBytes);
      step_bytes<R, P>(sums, a + k, rows.stride, b, panel_stride);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec::F scale = Vec::set1(rows.scales(row + r)[run]);
#pragma GCC unroll 16
      for (int j = 0; j < P * kPanelVecs; ++j) {
        float* sum = tile + (j / kPanelVecs * R + r) * kPanelColumns + j % kPanelVecs * Vec::kWidth;
        const Vec::F before = run == 0 ? Vec::zero() : Vec::load(sum);
        Vec::F after = add_run(before, Vec::byte_sums(sums.sum[r][j]), scale, run == 0);
        if (run + 1 == rows.num_runs) {
          after =
              Vec::mul(after, Vec::load(column_scales + j / kPanelVecs * scale_stride + j % kPanelVecs * Vec::kWidth));
        }
        Vec::store(sum, after);
      }
    }
  }
}

// Rows [row, row + R) with panels [panel, panel + P).
template <int R, int P>
static void byte_product(const GemmParams& g, const ByteRows& rows, int64_t row, int64_t panel) {
  alignas(64) float tile[P * R * kPanelColumns];
  const int64_t panel_stride = byte_panel_bytes(g.weight.cols);
  const int8_t* b = static_cast<const int8_t*>(g.weight.data) + panel * panel_stride;
  multiply_bytes<R, P>(rows, row, b, panel_stride, tile);
  for (int p = 0; p < P; ++p) finish_bytes(g, tile + p * R * kPanelColumns, R, row, panel + p);
}

using ByteProductFn = void (*)(const GemmParams&, const ByteRows&, int64_t row, int64_t panel);

struct ByteTileFns {
  ByteProductFn one_panel;
  ByteProductFn several_panels;
  int num_panels;  // of several_panels
};

template <int R = Vec::kGemmRows>
static ByteTileFns byte_tile_fns(int64_t rows) {
  if constexpr (R > 1) {
    if (rows < R) return byte_tile_fns<R - 1>(rows);
  }
  return {byte_product<R, 1>, byte_product<R, panels_at_once(R)>, panels_at_once(R)};
}

static void gemm_byte_block(const GemmParams& g, const ByteRows& rows, int64_t row_begin, int64_t row_end,
                            int64_t panel_begin, int64_t panel_end) {
  const int64_t num_rows = row_end - row_begin;
  const int64_t num_tiles = ceil_div(num_rows, Vec::kGemmRows);
  int64_t panel = panel_begin;
  if (num_tiles == 1) {
    const ByteTileFns fns = byte_tile_fns(num_rows);
    for (; panel + fns.num_panels <= panel_end; panel += fns.num_panels) fns.several_panels(g, rows, row_begin, panel);
    for (; panel < panel_end; ++panel) fns.one_panel(g, rows, row_begin, panel);
    return;
  }
  for (; panel < panel_end; ++panel) {
    for (int64_t i = 0; i < num_tiles; ++i) {
      const int64_t begin = row_begin + num_rows * i / num_tiles;
      const int64_t end = row_begin + num_rows * (i + 1) / num_tiles;
      byte_tile_fns(end - begin).one_panel(g, rows, begin, panel);
    }
  }
}

static void check_int8_gemm(const GemmParams& g) {
  QUIRE_CHECK(g.out_dtype == DType::f32 || g.out_dtype == g.int8_a_dtype);
  QUIRE_CHECK(!g.accumulate || g.out_dtype == DType::f32);
  QUIRE_CHECK(g.int8_rows != nullptr, "a product with weights of i8 needs int8_rows");
}

static void gemm_int8(const GemmParams& g, Stream stream) {
  if (g.m <= 0 || g.weight.rows <= 0) return;
  check_int8_gemm(g);
  const ByteRows rows = quantize_activations(g, stream);
  const int64_t tiles_per_block = greater(1, kRowBlockBytes / (rows.stride * Vec::kGemmRows));
  const int64_t num_blocks = ceil_div(g.m, tiles_per_block * Vec::kGemmRows);
  const auto [group, num_groups] = split_panels(g, num_blocks, num_threads_of(stream), 4);
  const int64_t panels = num_panels(g.weight);
  const double bytes = static_cast<double>(rows.cols) * static_cast<double>(g.weight.rows);
  const double estimate_ns = bytes / 40.0 + bytes * static_cast<double>(g.m) / 300.0;
  for_each_task(stream, num_blocks * num_groups, estimate_ns, [&](int64_t task) {
    const int64_t block = task / num_groups;
    const int64_t first = task % num_groups * group;
    gemm_byte_block(g, rows, g.m * block / num_blocks, g.m * (block + 1) / num_blocks, first,
                    lesser(panels, first + group));
  });
}

static void gemm_of_any_weight(const GemmParams& g, Stream stream) {
  g.weight.dtype == DType::i8 ? gemm_int8(g, stream) : gemm(g, stream);
}
