// The bf16 product on AMX tiles: the panels of gemm.inl, whose pairs of k lie as TDPBF16PS wants them, 32 k at a time.
//
// Every output element is one running sum over steps of 32 k, whatever the number of rows and their place in a tile.
// The order within a step is the instruction's, another one than VDPBF16PS's, so this backend takes tiles for a single
// row, too. Other element types go through gemm.inl. Tiles 0 to 3 hold sums, 4 and 5 rows of a, 6 and 7 the halves of a
// panel.

constexpr int kTileRows = 16;
constexpr int kTileK = 32;
constexpr int64_t kPanelStepElements = kTileK * kPanelColumns;
constexpr int64_t kPanelRowBytes = 2 * kPanelColumns * sizeof(Bf16);  // a pair of k, all columns

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// `low` and `high` rows of a in tiles 4 and 5; high = 0: two panels of the same rows.
static void shape_tiles(int low, int high) {
  TileShapes shapes;
  const int sums_high = high == 0 ? low : high;
  const int rows[8] = {low, low, sums_high, sums_high, low, sums_high, kTileRows, kTileRows};
  for (int i = 0; i < 8; ++i) {
    shapes.rows[i] = static_cast<uint8_t>(rows[i]);
    shapes.row_bytes[i] = 64;
  }
  asm volatile("" ::: "memory");  // the intrinsics do not say what they read
  _tile_loadconfig(&shapes);
}

static inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Two tiles of rows with one panel; strides in bytes.
static inline void add_rows_step(const Bf16* low, const Bf16* high, int64_t a_stride, const Bf16* b) {
  _tile_loadd(4, low, a_stride);
  _tile_loadd(6, b, kPanelRowBytes);
  _tile_loadd(7, b + kPanelColumns, kPanelRowBytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(5, high, a_stride);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// One tile of rows with one panel, or with two.
template <bool kTwo>
static inline void add_panels_step(const Bf16* a, int64_t a_stride, const Bf16* b, const Bf16* next) {
  _tile_loadd(4, a, a_stride);
  _tile_loadd(6, b, kPanelRowBytes);
  _tile_loadd(7, b + kPanelColumns, kPanelRowBytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (kTwo) {
    _tile_loadd(6, next, kPanelRowBytes);
    _tile_loadd(7, next + kPanelColumns, kPanelRowBytes);
    _tile_dpbf16ps(2, 4, 6);
    _tile_dpbf16ps(3, 4, 7);
  }
}

// The last k of a product that are less than a step, padded with zeros.
struct LastStep {
  alignas(64) Bf16 a[2 * kTileRows * kTileK];
  alignas(64) Bf16 b[2 * kPanelStepElements];

  LastStep(const Bf16* rows, int64_t a_stride, int num_rows, const Bf16* panel, int64_t panel_stride, int num_panels,
           int64_t count) {
    memset(this, 0, sizeof(*this));
    for (int r = 0; r < num_rows; ++r) memcpy(a + r * kTileK, rows + r * a_stride, static_cast<size_t>(count) * 2);
    const size_t bytes = static_cast<size_t>(round_up(count, 2)) * kPanelColumns * sizeof(Bf16);
    for (int p = 0; p < num_panels; ++p) memcpy(b + p * kPanelStepElements, panel + p * panel_stride, bytes);
    asm volatile("" ::: "memory");
  }
};

// Sums that wait for their epilogue: it runs row by row between the products of the next tile, on units that these
// leave idle.
struct Unfinished {
  const float* sums = nullptr;
  int rows = 0;
  int64_t row = 0, panel = 0;

  void finish_some(const GemmParams& g, int count) {
    if (count > rows) count = rows;
    if (count <= 0) return;
    finish<Bf16>(g, sums, count, row, panel);
    sums += count * kPanelColumns;
    rows -= count;
    row += count;
  }
};

// Rows of a block times panels of a group, 17 to 32 rows at a time, k in pieces: what a piece of a panel and of a's
// rows takes stays in the first-level cache while the sums of the whole block wait in the second-level one. A block of
// 32 rows or more has whole tiles alone: the last one begins early, and rows that it shares are finished once.
class BlockProduct {
 public:
  BlockProduct(const GemmParams& g, int64_t row_begin, int64_t row_end, int64_t panel_begin, int64_t panel_end)
      : g_(g), row_begin_(row_begin), row_end_(row_end), panel_begin_(panel_begin), panel_end_(panel_end) {}

  void run() {
    const int64_t k = g_.weight.cols;
    const int64_t piece = k <= kWholeK ? k : kPieceK;
    const int num_tiles = static_cast<int>(ceil_div(row_end_ - row_begin_, 2 * kTileRows));
    for (int64_t begin = 0; begin < k; begin += piece) {
      const int64_t end = lesser(k, begin + piece);
      for (int64_t panel = panel_begin_; panel < panel_end_; ++panel) {
        for (int tile = 0; tile < num_tiles; ++tile) {
          const int64_t row = row_begin_ + tile * 2 * kTileRows;
          const int rows = static_cast<int>(lesser(2 * kTileRows, row_end_ - row));
          const int64_t shared = lesser(2 * kTileRows - rows, row - row_begin_);
          // In one piece, two take turns, since one waits for its epilogue.
          const int64_t place = piece == k ? tile % 2 : (panel - panel_begin_) * num_tiles + tile;
          float* sums = sums_ + place * 2 * kTileRows * kPanelColumns;
          add_piece(row - shared, rows + static_cast<int>(shared), panel, begin, end, next_panel(panel, begin, end),
                    tile, num_tiles, sums);
          if (end == k) waiting_ = {sums + shared * kPanelColumns, rows, row, panel};
        }
      }
    }
    waiting_.finish_some(g_, waiting_.rows);
  }

  static constexpr int64_t kRows = 256;  // of a block, at most
  static constexpr int64_t kPanels = 4;  // of a group with as many rows; more with fewer rows

 private:
  static constexpr int64_t kWholeK = 576;  // up to here in one piece
  static constexpr int64_t kPieceK = 256;
  static constexpr int64_t kLine = 64 / sizeof(Bf16);
  static constexpr int64_t kSumsStride = kPanelColumns * sizeof(float);

  const Bf16* piece_of(int64_t panel, int64_t k) const {
    return static_cast<const Bf16*>(g_.weight.data) + panel * panel_elements(g_.weight.cols, DType::bf16) +
           k * kPanelColumns;
  }

  // The piece after that of `panel` at [begin, end), or the same one when it is the last.
  const Bf16* next_panel(int64_t panel, int64_t begin, int64_t end) const {
    if (panel + 1 < panel_end_) return piece_of(panel + 1, begin);
    return end < g_.weight.cols ? piece_of(panel_begin_, end) : piece_of(panel, begin);
  }

  // `next`, of which each of the tiles fetches its share, is the piece that comes after this one.
  void add_piece(int64_t row, int rows, int64_t panel, int64_t begin, int64_t end, const Bf16* next, int tile,
                 int num_tiles, float* sums) {
    const int64_t stride = g_.a_stride * 2;
    const Bf16* low = static_cast<const Bf16*>(g_.a) + row * g_.a_stride + begin;
    const Bf16* high = low + kTileRows * g_.a_stride;
    const Bf16* b = piece_of(panel, begin);
    float* sums_high = sums + kTileRows * kPanelColumns;
    if (begin == 0) {
      zero_sums();
    } else {
      _tile_loadd(0, sums, kSumsStride);
      _tile_loadd(1, sums + 16, kSumsStride);
      _tile_loadd(2, sums_high, kSumsStride);
      _tile_loadd(3, sums_high + 16, kSumsStride);
    }
    const int64_t steps = (end - begin) / kTileK;
    const int per_step = static_cast<int>(ceil_div(waiting_.rows, greater(1, steps)));
    const int64_t lines = steps * kPanelStepElements / kLine,
                  lines_a_step = ceil_div(lines, greater(1, steps * num_tiles));
    int64_t line = tile * steps * lines_a_step;
    for (int64_t i = 0; i < steps; ++i, b += kPanelStepElements) {
      for (int64_t end_line = lesser(lines, line + lines_a_step); line < end_line; ++line) {
        _mm_prefetch(reinterpret_cast<const char*>(next + line * kLine), _MM_HINT_T1);
      }
      add_rows_step(low + i * kTileK, high + i * kTileK, stride, b);
      waiting_.finish_some(g_, per_step);
    }
    if (begin + steps * kTileK < end) {
      const LastStep last(low + steps * kTileK, g_.a_stride, rows, b, 0, 1, end - begin - steps * kTileK);
      add_rows_step(last.a, last.a + kTileRows * kTileK, kTileK * 2, last.b);
    }
    waiting_.finish_some(g_, waiting_.rows);
    _tile_stored(0, sums, kSumsStride);
    _tile_stored(1, sums + 16, kSumsStride);
    _tile_stored(2, sums_high, kSumsStride);
    _tile_stored(3, sums_high + 16, kSumsStride);
  }

  const GemmParams& g_;
  const int64_t row_begin_, row_end_, panel_begin_, panel_end_;
  Unfinished waiting_;
  alignas(64) float sums_[kRows * kPanels * kPanelColumns];
};

// Rows [row, row + rows), at most 16, with one panel or two.
template <bool kTwo>
static void product_of_panels(const GemmParams& g, int64_t row, int rows, int64_t panel) {
  const int64_t k = g.weight.cols, whole = k / kTileK * kTileK, stride = g.a_stride * 2;
  const Bf16* a = static_cast<const Bf16*>(g.a) + row * g.a_stride;
  const int64_t panel_stride = panel_elements(k, DType::bf16);
  const Bf16* b = static_cast<const Bf16*>(g.weight.data) + panel * panel_stride;
  // As in gemm.inl: the last bytes of a panel prefetch what comes next instead.
  constexpr int64_t kAhead = 4 * kPanelStepElements;
  int64_t distance = kAhead;
  zero_sums();
  for (int64_t i = 0; i < whole; i += kTileK, b += kPanelStepElements) {
    if (i == whole - 4 * kTileK) distance += kTwo ? panel_stride : 0;
    prefetch_step<kTwo ? 2 : 1>(b, panel_stride, distance, kPanelStepElements);
    add_panels_step<kTwo>(a + i, stride, b, b + panel_stride);
  }
  if (whole < k) {
    const LastStep last(a + whole, g.a_stride, rows, b, panel_stride, kTwo ? 2 : 1, k - whole);
    add_panels_step<kTwo>(last.a, kTileK * 2, last.b, last.b + kPanelStepElements);
  }
  alignas(64) float sums[2 * kTileRows * kPanelColumns];
  constexpr int64_t kSumsStride = kPanelColumns * sizeof(float);
  _tile_stored(0, sums, kSumsStride);
  _tile_stored(1, sums + 16, kSumsStride);
  finish<Bf16>(g, sums, rows, row, panel);
  if constexpr (kTwo) {
    float* next = sums + kTileRows * kPanelColumns;
    _tile_stored(2, next, kSumsStride);
    _tile_stored(3, next + 16, kSumsStride);
    finish<Bf16>(g, next, rows, row, panel + 1);
  }
}

static void gemm_block_amx(const GemmParams& g, int64_t row_begin, int64_t row_end, int64_t panel_begin,
                           int64_t panel_end) {
  const int rows = static_cast<int>(lesser(2 * kTileRows, row_end - row_begin));
  if (rows > kTileRows) {
    shape_tiles(kTileRows, rows - kTileRows);
    BlockProduct(g, row_begin, row_end, panel_begin, panel_end).run();
  } else {
    shape_tiles(rows, 0);
    int64_t panel = panel_begin;
    for (; panel + 2 <= panel_end; panel += 2) product_of_panels<true>(g, row_begin, rows, panel);
    if (panel < panel_end) product_of_panels<false>(g, row_begin, rows, panel);
  }
  _tile_release();  // a thread that holds tiles is slower to switch
}

static void gemm_amx(const GemmParams& g, Stream stream) {
  if (g.weight.dtype != DType::bf16) return gemm(g, stream);
  if (g.m <= 0 || g.weight.rows <= 0) return;
  check_gemm(g);
  const double bytes = static_cast<double>(greater(1, g.weight.cols) * 2 * g.weight.rows);
  const double estimate_ns = bytes / 40.0 + bytes * static_cast<double>(g.m) / 1500.0;
  const int64_t panels = num_panels(g.weight), num_blocks = ceil_div(g.m, BlockProduct::kRows);
  GemmSplit split = split_panels(g, num_blocks, num_threads_of(stream), 2);
  if (g.m > kTileRows) {
    const int64_t rows = lesser(BlockProduct::kRows, round_up(g.m, 2 * kTileRows));
    split.group = lesser(split.group, BlockProduct::kRows * BlockProduct::kPanels / rows);
    split.num_groups = ceil_div(panels, split.group);
  }
  for_each_task(stream, num_blocks * split.num_groups, estimate_ns, [&](int64_t task) {
    const int64_t row = task / split.num_groups * BlockProduct::kRows, first = task % split.num_groups * split.group;
    gemm_block_amx(g, row, lesser(g.m, row + BlockProduct::kRows), first, lesser(panels, first + split.group));
  });
}
