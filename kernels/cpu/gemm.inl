// out = epilogue(a * weight^T) on packed panels (layout.h). Every output element is one running sum over k, whatever
// the number of rows, the tile and the split over threads, so its bits depend on its row of a and its column alone.
//
// A tile is R rows x P panels of 32 columns, held in registers over the whole k. Rows of a tile share the loads of B;
// with one to four rows several panels at once hide the latency of the sums and keep the memory busy.

constexpr int kPanelVecs = kPanelColumns / Vec::kWidth;
constexpr int kConvertedK = 256;               // elements of a row converted to float at a time; even
constexpr int kPrefetchBytes = 2048;           // ahead in each panel
constexpr int64_t kRowBlockBytes = 384 << 10;  // rows of a that should stay in the second-level cache

// Panels multiplied at once by a tile of `rows` rows, when it is the only tile.
constexpr int panels_at_once(int rows) {
  const int wanted = (Vec::kDotBf16 ? 16 : 8) / (rows * kPanelVecs);
  return wanted >= 4 ? 4 : wanted >= 2 ? 2 : 1;
}

template <int R, int P>
struct Sums {
  Vec::F sum[R][P * kPanelVecs];
};

// One k of all columns: float a, B of any element type in [k][32] order.
template <int R, int P, typename T>
[[gnu::always_inline]] static inline void step(Sums<R, P>& sums, const float* a, int64_t a_stride, const T* b,
                                               int64_t panel_stride) {
#pragma GCC unroll 16
  for (int j = 0; j < P * kPanelVecs; ++j) {
    const Vec::F column = Vec::load(b + j / kPanelVecs * panel_stride + j % kPanelVecs * Vec::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sums.sum[r][j] = Vec::fma(Vec::set1(a[r * a_stride]), column, sums.sum[r][j]);
  }
}

// One pair of k without the dot instruction: first the even, then the odd k.
template <int R, int P>
[[gnu::always_inline]] static inline void step_pair(Sums<R, P>& sums, const float* a, int64_t a_stride, const Bf16* b,
                                                    int64_t panel_stride) {
#pragma GCC unroll 16
  for (int j = 0; j < P * kPanelVecs; ++j) {
    Vec::F even, odd;
    Vec::load_pairs(b + j / kPanelVecs * panel_stride + j % kPanelVecs * Vec::kWidth * 2, &even, &odd);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      sums.sum[r][j] = Vec::fma(Vec::set1(a[r * a_stride]), even, sums.sum[r][j]);
      sums.sum[r][j] = Vec::fma(Vec::set1(a[r * a_stride + 1]), odd, sums.sum[r][j]);
    }
  }
}

// The pair (a[0], a[1]), or with an odd last k (a[0], 0), as 32 bits.
template <bool kIsSingle>
[[gnu::always_inline]] static inline uint32_t pair_bits(const Bf16* a) {
  if constexpr (kIsSingle) return a->bits;
  uint32_t bits;
  memcpy(&bits, a, sizeof(bits));
  return bits;
}

// One pair of k with the dot instruction.
template <int R, int P, bool kIsSingle>
[[gnu::always_inline]] static inline void step_dot(Sums<R, P>& sums, const Bf16* a, int64_t a_stride, const Bf16* b,
                                                   int64_t panel_stride) {
  Vec::U columns[P * kPanelVecs];
#pragma GCC unroll 16
  for (int j = 0; j < P * kPanelVecs; ++j) {
    columns[j] = Vec::load_u(b + j / kPanelVecs * panel_stride + j % kPanelVecs * Vec::kWidth * 2);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Vec::U two = Vec::set1_u(pair_bits<kIsSingle>(a + r * a_stride));
#pragma GCC unroll 16
    for (int j = 0; j < P * kPanelVecs; ++j) sums.sum[r][j] = Vec::dot(sums.sum[r][j], two, columns[j]);
  }
}

template <int P, typename T>
[[gnu::always_inline]] static inline void prefetch_step(const T* b, int64_t panel_stride, int64_t distance,
                                                        int elements) {
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int e = 0; e < elements; e += 64 / static_cast<int>(sizeof(T))) {
      Vec::prefetch(b + p * panel_stride + distance + e);
    }
  }
}

// Rows of a, `count` elements from `k` on, as float; an odd count of a paired type is padded with a zero.
template <typename T>
static void convert_rows(const T* a, int64_t a_stride, int rows, int64_t count, float* out) {
  for (int r = 0; r < rows; ++r, a += a_stride, out += kConvertedK) {
    for (int64_t i = 0; i < count; i += Vec::kWidth) Vec::store(out + i, load_up_to(a + i, count - i));
  }
}

// Sums over [k_begin, k_end) of float a: the loop of all paths without the dot instruction.
template <int R, int P, typename T>
[[gnu::always_inline]] static inline void sum_floats(Sums<R, P>& sums, const float* a, int64_t a_stride, const T* b,
                                                     int64_t panel_stride, int64_t count) {
  constexpr int64_t kAhead = kPrefetchBytes / static_cast<int64_t>(sizeof(T));
  if constexpr (sizeof(T) == 2 && !std::is_same_v<T, F16>) {
    for (int64_t k = 0; k < count; k += 2, b += 2 * kPanelColumns) {
      prefetch_step<P>(b, panel_stride, kAhead, 2 * kPanelColumns);
      step_pair<R, P>(sums, a + k, a_stride, b, panel_stride);
    }
  } else {
    for (int64_t k = 0; k < count; ++k, b += kPanelColumns) {
      prefetch_step<P>(b, panel_stride, kAhead, kPanelColumns);
      step<R, P>(sums, a + k, a_stride, b, panel_stride);
    }
  }
}

// The dot path. The last kPrefetchBytes of each panel prefetch the panels that come next instead.
template <int R, int P>
[[gnu::always_inline]] static inline void sum_dots(Sums<R, P>& sums, const Bf16* a, int64_t a_stride, const Bf16* b,
                                                   int64_t panel_stride, int64_t k) {
  constexpr int64_t kAhead = kPrefetchBytes / 2;
  const int64_t num_pairs = k / 2;
  const int64_t last_own = greater(0, num_pairs - kAhead / (2 * kPanelColumns));
  int64_t distance = kAhead;
  for (int64_t i = 0; i < num_pairs; ++i, b += 2 * kPanelColumns) {
    if (i == last_own) distance += (P - 1) * panel_stride;
    prefetch_step<P>(b, panel_stride, distance, 2 * kPanelColumns);
    step_dot<R, P, false>(sums, a + 2 * i, a_stride, b, panel_stride);
  }
  if (k % 2 != 0) step_dot<R, P, true>(sums, a + k - 1, a_stride, b, panel_stride);
}

// tile[p][r][32] = sums of R rows with P neighbouring panels.
template <int R, int P, typename T>
static void multiply(const T* a, int64_t a_stride, const T* b, int64_t panel_stride, int64_t k, float* tile) {
  Sums<R, P> sums;
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int j = 0; j < P * kPanelVecs; ++j) sums.sum[r][j] = Vec::zero();
  }
  if constexpr (std::is_same_v<T, float>) {
    sum_floats<R, P>(sums, a, a_stride, b, panel_stride, k);
  } else if constexpr (std::is_same_v<T, Bf16> && Vec::kDotBf16) {
    sum_dots<R, P>(sums, a, a_stride, b, panel_stride, k);
  } else {
    alignas(64) float rows[R * kConvertedK + Vec::kWidth];
    for (int64_t begin = 0; begin < k; begin += kConvertedK) {
      const int64_t count = lesser(kConvertedK, k - begin);
      convert_rows(a + begin, a_stride, R, count, rows);
      sum_floats<R, P>(sums, rows, kConvertedK, b + begin * kPanelColumns, panel_stride, count);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int j = 0; j < P * kPanelVecs; ++j) {
      Vec::store(tile + (j / kPanelVecs * R + r) * kPanelColumns + j % kPanelVecs * Vec::kWidth, sums.sum[r][j]);
    }
  }
}

// Columns [column, column + count) of one row: sums to results. `up` is null for weights that are not gated.
template <Activation kActivation, bool kIsRough>
[[gnu::always_inline]] static inline Vec::F finish_vector(const GemmParams& g, const float* sums, const float* up,
                                                          int64_t column, int64_t count) {
  const Vec::F scale = Vec::set1(g.scale);
  Vec::F x = Vec::mul(Vec::load(sums), scale);
  if (g.bias != nullptr) x = Vec::add(x, load_up_to(g.bias + column, count));
  x = activate<kActivation, kIsRough>(x);
  if (up != nullptr) {
    Vec::F y = Vec::mul(Vec::load(up), scale);
    if (g.bias != nullptr) y = Vec::add(y, load_up_to(g.bias + num_outputs(g.weight) + column, count));
    x = Vec::mul(x, y);
  }
  return g.softcap > 0.0f ? softcap_of(x, g.softcap) : x;
}

template <typename Out, Activation kActivation>
static void finish_rows(const GemmParams& g, const float* tile, int rows, int64_t row, int64_t panel) {
  constexpr bool kIsRough = sizeof(Out) < sizeof(float);
  const bool gated = g.weight.gated;
  const int64_t width = outputs_per_panel(g.weight);
  const int64_t column = panel * width;
  const int64_t count = lesser(width, num_outputs(g.weight) - column);
  Out* out = static_cast<Out*>(g.out) + row * g.out_stride + column;
  for (int r = 0; r < rows; ++r, tile += kPanelColumns, out += g.out_stride) {
    int64_t c = 0;
    for (; !gated && kIsRough && c + 2 * Vec::kWidth <= count; c += 2 * Vec::kWidth) {
      constexpr int64_t kNext = Vec::kWidth;
      const Vec::F low = finish_vector<kActivation, kIsRough>(g, tile + c, nullptr, column + c, kNext);
      const Vec::F high = finish_vector<kActivation, kIsRough>(g, tile + c + kNext, nullptr, column + c + kNext, kNext);
      Vec::store_two(out + c, low, high);
    }
    for (; c < count; c += Vec::kWidth) {
      const int64_t left = count - c;
      const float* up = gated ? tile + kGatedColumns + c : nullptr;
      Vec::F x = finish_vector<kActivation, kIsRough>(g, tile + c, up, column + c, left);
      if constexpr (std::is_same_v<Out, float>) {
        if (g.accumulate) x = Vec::add(load_up_to(out + c, left), x);
      }
      store_up_to(out + c, x, left);
    }
  }
}

template <typename Out>
static void finish_as(const GemmParams& g, const float* tile, int rows, int64_t row, int64_t panel) {
  switch (g.activation) {
    case Activation::silu:
      return finish_rows<Out, Activation::silu>(g, tile, rows, row, panel);
    case Activation::gelu:
      return finish_rows<Out, Activation::gelu>(g, tile, rows, row, panel);
    case Activation::gelu_tanh:
      return finish_rows<Out, Activation::gelu_tanh>(g, tile, rows, row, panel);
    case Activation::relu:
      return finish_rows<Out, Activation::relu>(g, tile, rows, row, panel);
    case Activation::tanh:
      return finish_rows<Out, Activation::tanh>(g, tile, rows, row, panel);
    case Activation::none:
      return finish_rows<Out, Activation::none>(g, tile, rows, row, panel);
  }
}

// The epilogue of `rows` rows of one panel of a weight of T.
template <typename T>
static void finish(const GemmParams& g, const float* tile, int rows, int64_t row, int64_t panel) {
  if (g.out_dtype == DType::f32) return finish_as<float>(g, tile, rows, row, panel);
  finish_as<T>(g, tile, rows, row, panel);
}

// Rows [row, row + R) with panels [panel, panel + P).
template <typename T, int R, int P>
static void product(const GemmParams& g, int64_t row, int64_t panel) {
  alignas(64) float tile[P * R * kPanelColumns];
  const int64_t panel_stride = panel_elements(g.weight.cols, g.weight.dtype);
  multiply<R, P>(static_cast<const T*>(g.a) + row * g.a_stride, g.a_stride,
                 static_cast<const T*>(g.weight.data) + panel * panel_stride, panel_stride, g.weight.cols, tile);
  for (int p = 0; p < P; ++p) finish<T>(g, tile + p * R * kPanelColumns, R, row, panel + p);
}

using ProductFn = void (*)(const GemmParams&, int64_t row, int64_t panel);

struct TileFns {
  ProductFn one_panel;
  ProductFn several_panels;
  int num_panels;  // of several_panels
};

template <typename T, int R = Vec::kGemmRows>
static TileFns tile_fns(int64_t rows) {
  if constexpr (R > 1) {
    if (rows < R) return tile_fns<T, R - 1>(rows);
  }
  return {product<T, R, 1>, product<T, R, panels_at_once(R)>, panels_at_once(R)};
}

template <typename T>
static void gemm_block(const GemmParams& g, int64_t row_begin, int64_t row_end, int64_t panel_begin,
                       int64_t panel_end) {
  const int64_t rows = row_end - row_begin;
  const int64_t num_tiles = ceil_div(rows, Vec::kGemmRows);
  int64_t panel = panel_begin;
  if (num_tiles == 1) {
    const TileFns fns = tile_fns<T>(rows);
    for (; panel + fns.num_panels <= panel_end; panel += fns.num_panels) fns.several_panels(g, row_begin, panel);
    for (; panel < panel_end; ++panel) fns.one_panel(g, row_begin, panel);
    return;
  }
  for (; panel < panel_end; ++panel) {
    for (int64_t i = 0; i < num_tiles; ++i) {
      const int64_t begin = row_begin + rows * i / num_tiles;
      const int64_t end = row_begin + rows * (i + 1) / num_tiles;
      tile_fns<T>(end - begin).one_panel(g, begin, panel);
    }
  }
}

static void check_gemm(const GemmParams& g) {
  QUIRE_CHECK(g.out_dtype == DType::f32 || g.out_dtype == g.weight.dtype);
  QUIRE_CHECK(!g.accumulate || g.out_dtype == DType::f32);
}

// How many panels a task takes, a multiple of `together` if there are many. A few tasks for each thread even out what
// else the machine does; neighbouring tasks share their block of rows.
struct GemmSplit {
  int64_t group, num_groups;
};

static GemmSplit split_panels(const GemmParams& g, int64_t num_blocks, int64_t num_threads, int64_t together) {
  const int64_t panels = num_panels(g.weight);
  const int64_t wanted = ceil_div(num_threads * 8, num_blocks);
  const int64_t group = round_up(ceil_div(panels, wanted), panels >= together * wanted ? together : 1);
  return {group, ceil_div(panels, group)};
}

static void gemm(const GemmParams& g, Stream stream) {
  if (g.m <= 0 || g.weight.rows <= 0) return;
  check_gemm(g);
  const int64_t row_bytes = greater(1, g.weight.cols) * static_cast<int64_t>(dtype_bytes(g.weight.dtype));
  const int64_t tiles_per_block = greater(1, kRowBlockBytes / (row_bytes * Vec::kGemmRows));
  const int64_t num_blocks = ceil_div(g.m, tiles_per_block * Vec::kGemmRows);
  const auto [group, num_groups] = split_panels(g, num_blocks, num_threads_of(stream), 4);
  const int64_t panels = num_panels(g.weight);
  const double bytes = static_cast<double>(row_bytes) * static_cast<double>(g.weight.rows);
  const double estimate_ns = bytes / 40.0 + bytes * static_cast<double>(g.m) / 300.0;
  for_each_task(stream, num_blocks * num_groups, estimate_ns, [&](int64_t task) {
    const int64_t block = task / num_groups;
    const int64_t first = task % num_groups * group;
    const int64_t last = lesser(panels, first + group);
    const int64_t row_begin = g.m * block / num_blocks, row_end = g.m * (block + 1) / num_blocks;
    switch (g.weight.dtype) {
      case DType::bf16:
        return gemm_block<Bf16>(g, row_begin, row_end, first, last);
      case DType::f16:
        return gemm_block<F16>(g, row_begin, row_end, first, last);
      default:
        return gemm_block<float>(g, row_begin, row_end, first, last);
    }
  });
}
