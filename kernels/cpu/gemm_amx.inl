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

// Fetches lines into the second-level cache, the same number in each quarter of a step: a burst of them takes all fill
// buffers, and the loads of the step wait (1.2 to 1.3 times the time at 62 rows).
template <int kLines>
[[gnu::always_inline]] static inline void fetch_lines(const char*& next) {
#pragma GCC unroll 8
  for (int i = 0; i < kLines; ++i, next += 64) _mm_prefetch(next, _MM_HINT_T1);
}

// Two tiles of rows with one panel; strides in bytes.
template <int kLines>
[[gnu::always_inline]] static inline void add_rows_step(const Bf16* low, const Bf16* high, int64_t a_stride,
                                                        const Bf16* b, const char*& next) {
  fetch_lines<kLines>(next);
  _tile_loadd(4, low, a_stride);
  _tile_loadd(6, b, kPanelRowBytes);
  fetch_lines<kLines>(next);
  _tile_loadd(7, b + kPanelColumns, kPanelRowBytes);
  _tile_dpbf16ps(0, 4, 6);
  fetch_lines<kLines>(next);
  _tile_loadd(5, high, a_stride);
  _tile_dpbf16ps(1, 4, 7);
  fetch_lines<kLines>(next);
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

// Rows of a block times panels of a group, 17 to 32 rows at a time, k in pieces. A block of 32 rows or more has whole
// tiles alone: the last one begins early, and rows that it shares are finished once.
class BlockProduct {
 public:
  BlockProduct(const GemmParams& g, int64_t row_begin, int64_t row_end, int64_t panel_begin, int64_t panel_end)
      : g_(g),
        k_(g.weight.cols),
        row_begin_(row_begin),
        row_end_(row_end),
        panel_begin_(panel_begin),
        panel_end_(panel_end),
        num_tiles_(static_cast<int>(ceil_div(row_end - row_begin, 2 * kTileRows))) {}

  void run() {
    if (num_tiles_ <= kStreamedTiles) {
      run_panel_by_panel();
    } else {
      run_piece_by_piece();
    }
    waiting_.finish_some(g_, waiting_.rows);
  }

  static constexpr int64_t kRows = 256;  // of a block, at most
  static constexpr int64_t kPanels = 4;  // of a group with as many rows; more with fewer rows

 private:
  static constexpr int kStreamedTiles = 2;
  static constexpr int64_t kWholeK = 576;  // up to here in one piece
  static constexpr int64_t kPieceK = 256, kStreamedPieceK = 192;
  static constexpr int64_t kLineBytes = 64, kStepLines = kPanelStepElements * 2 / kLineBytes;
  static constexpr int64_t kStreamAhead = 32 << 10;  // bytes
  static constexpr int64_t kFinishSteps = 16;        // an epilogue is spread over as many at most
  static constexpr int64_t kSumsStride = kPanelColumns * sizeof(float);
  static constexpr int64_t kTileSums = 2 * kTileRows * kPanelColumns;

  struct Piece {
    int64_t panel, begin, end;  // k in [begin, end)
  };

  // Few rows: the weight is one ascending stream at the speed of memory, and the sums of a panel, which come back for
  // each piece, stay in the first-level cache. Panels take turns in two rooms, since one waits for its epilogue.
  void run_panel_by_panel() {
    const int64_t piece_k = k_ <= kWholeK ? k_ : kStreamedPieceK;
    for (int64_t panel = panel_begin_; panel < panel_end_; ++panel) {
      for (int64_t begin = 0; begin < k_; begin += piece_k) {
        const Piece piece{panel, begin, lesser(k_, begin + piece_k)};
        const char* const ahead = reinterpret_cast<const char*>(piece_of(panel, begin)) + kStreamAhead;
        for (int tile = 0; tile < num_tiles_; ++tile) {
          add_tile(piece, tile, ahead, ceil_div(k_, kTileK), sums_ + (panel % 2 * kStreamedTiles + tile) * kTileSums);
        }
      }
    }
  }

  // Many rows: what a piece of a panel and of a tile's rows takes stays in the first-level cache, while the sums of the
  // whole block wait in the second-level one. Tiles share out the fetching of the piece that comes next.
  void run_piece_by_piece() {
    const int64_t piece_k = k_ <= kWholeK ? k_ : kPieceK;
    for (int64_t begin = 0; begin < k_; begin += piece_k) {
      const int64_t end = lesser(k_, begin + piece_k);
      for (int64_t panel = panel_begin_; panel < panel_end_; ++panel) {
        const char* const next = reinterpret_cast<const char*>(next_piece({panel, begin, end}));
        for (int tile = 0; tile < num_tiles_; ++tile) {
          // In one piece, two take turns.
          const int64_t place = piece_k == k_ ? tile % 2 : (panel - panel_begin_) * num_tiles_ + tile;
          add_tile({panel, begin, end}, tile, next, (end - begin) / kTileK, sums_ + place * kTileSums);
        }
      }
    }
  }

  const Bf16* piece_of(int64_t panel, int64_t k) const {
    return static_cast<const Bf16*>(g_.weight.data) + panel * panel_elements(k_, DType::bf16) + k * kPanelColumns;
  }

  // The piece of the next panel, or of the first one when this is the last, or the same one at the very end.
  const Bf16* next_piece(const Piece& piece) const {
    if (piece.panel + 1 < panel_end_) return piece_of(piece.panel + 1, piece.begin);
    return piece.end < k_ ? piece_of(panel_begin_, piece.end) : piece_of(piece.panel, piece.begin);
  }

  // Adds a piece to the sums of a tile; of the lines at `next`, as many as the piece has, the tile fetches its share.
  // What waits for its epilogue gets it meanwhile, within `finish_steps`.
  void add_tile(const Piece& piece, int tile, const char* next, int64_t finish_steps, float* sums) {
    const int64_t row = row_begin_ + tile * 2 * kTileRows;
    const int rows = static_cast<int>(lesser(2 * kTileRows, row_end_ - row));
    const int shared = static_cast<int>(lesser(2 * kTileRows - rows, row - row_begin_));
    const int64_t num_lines = (piece.end - piece.begin) / kTileK * kStepLines;
    const auto add = num_tiles_ == 1   ? &BlockProduct::add_piece<8>
                     : num_tiles_ <= 3 ? &BlockProduct::add_piece<4>
                     : num_tiles_ <= 7 ? &BlockProduct::add_piece<2>
                                       : &BlockProduct::add_piece<1>;
    (this->*add)(row - shared, rows + shared, piece, next + num_lines * tile / num_tiles_ * kLineBytes,
                 lesser(finish_steps, kFinishSteps), sums);
    if (piece.end == k_) waiting_ = {sums + shared * kPanelColumns, rows, row, piece.panel};
  }

  // kLines: of a quarter of a step, the tile's share or some lines more.
  template <int kLines>
  void add_piece(int64_t row, int rows, const Piece& piece, const char* next, int64_t finish_steps, float* sums) {
    const int64_t stride = g_.a_stride * 2;
    const Bf16* low = static_cast<const Bf16*>(g_.a) + row * g_.a_stride + piece.begin;
    const Bf16* high = low + kTileRows * g_.a_stride;
    const Bf16* b = piece_of(piece.panel, piece.begin);
    float* sums_high = sums + kTileRows * kPanelColumns;
    if (piece.begin == 0) {
      zero_sums();
    } else {
      _tile_loadd(0, sums, kSumsStride);
      _tile_loadd(1, sums + 16, kSumsStride);
      _tile_loadd(2, sums_high, kSumsStride);
      _tile_loadd(3, sums_high + 16, kSumsStride);
    }
    const int64_t steps = (piece.end - piece.begin) / kTileK;
    const int per_step = static_cast<int>(ceil_div(waiting_.rows, greater(1, finish_steps)));
    for (int64_t i = 0; i < steps; ++i, b += kPanelStepElements) {
      add_rows_step<kLines>(low + i * kTileK, high + i * kTileK, stride, b, next);
      waiting_.finish_some(g_, per_step);
    }
    if (piece.begin + steps * kTileK < piece.end) {
      const LastStep last(low + steps * kTileK, g_.a_stride, rows, b, 0, 1, piece.end - piece.begin - steps * kTileK);
      add_rows_step<0>(last.a, last.a + kTileRows * kTileK, kTileK * 2, last.b, next);
    }
    if (piece.end == k_) waiting_.finish_some(g_, waiting_.rows);
    _tile_stored(0, sums, kSumsStride);
    _tile_stored(1, sums + 16, kSumsStride);
    _tile_stored(2, sums_high, kSumsStride);
    _tile_stored(3, sums_high + 16, kSumsStride);
  }

  const GemmParams& g_;
  const int64_t k_, row_begin_, row_end_, panel_begin_, panel_end_;
  const int num_tiles_;
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
