// Products with weights of i8 on AMX tiles: the panels and rows of gemm_int8.inl, whose groups of four k lie as TDPBSSD
// wants them, 64 k at a time.
//
// The whole numbers of a run are exact, so these products have the bits of those of gemm_int8.inl, which takes the
// launches of few rows: weights stream through either, and tiles of few rows are slower to fill. Tiles are used as in
// gemm_amx.inl.

// Launches of fewer rows go without tiles.
constexpr int64_t kFewestByteRows = 5;

// Whole numbers of a run that wait to be scaled and added, which happens between the products of the next run.
struct WaitingRun {
  int32_t* whole = nullptr;
  float* sums = nullptr;
  int first = 0, rows = 0;  // of the tile, still to be done
  int64_t row = 0, panel = 0, run = 0;

  void add_some(const GemmParams& g, const ByteRows& a, int count) {
    const int end = static_cast<int>(lesser(rows, first + count));
    if (first == end) return;
    const bool is_last = run + 1 == a.num_runs;
    if (is_last) {
      run == 0 ? add<true, true>(g, a, end) : add<false, true>(g, a, end);
      finish_bytes(g, sums + first * kPanelColumns, end - first, row + first, panel);
    } else {
      run == 0 ? add<true, false>(g, a, end) : add<false, false>(g, a, end);
    }
    first = end;
  }

  template <bool kIsFirst, bool kIsLast>
  void add(const GemmParams& g, const ByteRows& a, int end) const {
    const float* scales = a.scales(row + first) + run;
    const float* column_scales = byte_column_scales(g.weight, panel);
    for (int r = first; r < end; ++r, scales += a.stride / static_cast<int64_t>(sizeof(float))) {
      const Vec::F scale = Vec::set1(*scales);
#pragma GCC unroll 2
      for (int j = 0; j < kPanelVecs; ++j) {
        const int at = r * kPanelColumns + j * Vec::kWidth;
        const Vec::F values = Vec::byte_sums(Vec::load_u(whole + at));
        Vec::F sum = add_run(kIsFirst ? Vec::zero() : Vec::load(sums + at), values, scale, kIsFirst);
        if (kIsLast) sum = Vec::mul(sum, Vec::load(column_scales + j * Vec::kWidth));
        Vec::store(sums + at, sum);
      }
    }
  }
};

// Rows of a block times panels of a group, kHigh: 17 to 32 rows at a time, else up to 16; k in pieces, as in
// gemm_amx.inl.
template <bool kHigh>
class ByteBlockProduct {
 public:
  ByteBlockProduct(const GemmParams& g, const ByteRows& a, int64_t row_begin, int64_t row_end, int64_t panel_begin,
                   int64_t panel_end)
      : g_(g), a_(a), row_begin_(row_begin), row_end_(row_end), panel_begin_(panel_begin), panel_end_(panel_end) {}

  void run() {
    const int64_t piece = a_.cols <= kWholeK ? a_.cols : kPieceK;
    const int num_tiles = static_cast<int>(ceil_div(row_end_ - row_begin_, kTile));
    for (int64_t begin = 0; begin < a_.cols; begin += piece) {
      const int64_t end = lesser(a_.cols, begin + piece);
      for (int64_t panel = panel_begin_; panel < panel_end_; ++panel) {
        for (int tile = 0; tile < num_tiles; ++tile) {
          const int64_t row = row_begin_ + tile * kTile;
          const int rows = static_cast<int>(lesser(kTile, row_end_ - row));
          // In one piece, two take turns, since one waits for its epilogue.
          const int64_t place = piece == a_.cols ? tile % 2 : (panel - panel_begin_) * num_tiles + tile;
          add_piece(row, rows, panel, begin, end, sums_ + place * kTile * kPanelColumns);
        }
      }
    }
    waiting_.add_some(g_, a_, kTile);
  }

  static constexpr int64_t kRows = 256;  // of a block, at most
  static constexpr int64_t kPanels = 4;  // of a group with as many rows; more with fewer rows

 private:
  static constexpr int kTile = (kHigh ? 2 : 1) * kTileRows;
  static constexpr int64_t kWholeK = 1152;  // up to here in one piece
  static constexpr int64_t kPieceK = 512;
  static constexpr int64_t kStepBytes = kByteStepK * kPanelColumns;
  static constexpr int64_t kWholeStride = kPanelColumns * sizeof(int32_t);

  void add_step(const int8_t* low, const int8_t* b) const {
    _tile_loadd(4, low, a_.stride);
    _tile_loadd(6, b, kPanelRowBytes);
    _tile_loadd(7, b + kPanelRowBytes / 2, kPanelRowBytes);
    _tile_dpbssd(0, 4, 6);
    if constexpr (kHigh) _tile_loadd(5, low + kTileRows * a_.stride, a_.stride);
    _tile_dpbssd(1, 4, 7);
    if constexpr (!kHigh) return;
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }

  void add_piece(int64_t row, int rows, int64_t panel, int64_t begin, int64_t end, float* sums) {
    const int8_t* low = a_.values(row) + begin;
    const int8_t* b =
        static_cast<const int8_t*>(g_.weight.data) + panel * byte_panel_bytes(g_.weight.cols) + begin * kPanelColumns;
    const int64_t fetched = row == row_begin_ ? kStepBytes : 0;  // the other rows find the panel in the caches
    for (int64_t k = begin; k < end;) {
      const int64_t run_end = lesser(end, k + kInt8Run);
      const int64_t run = k / kInt8Run;
      zero_sums();
      for (; k < run_end; k += kByteStepK, low += kByteStepK, b += kStepBytes) {
        for (int64_t line = 0; line < fetched; line += 64) Vec::prefetch(b + kPrefetchBytes + line);
        add_step(low, b);
        waiting_.add_some(g_, a_, kTile / 2);
      }
      waiting_.add_some(g_, a_, kTile);
      whole_at_ ^= 1;
      int32_t* whole = whole_[whole_at_];
      _tile_stored(0, whole, kWholeStride);
      _tile_stored(1, whole + 16, kWholeStride);
      if constexpr (kHigh) {
        _tile_stored(2, whole + kTileRows * kPanelColumns, kWholeStride);
        _tile_stored(3, whole + kTileRows * kPanelColumns + 16, kWholeStride);
      }
      waiting_ = {whole, sums, 0, rows, row, panel, run};
    }
  }

  const GemmParams& g_;
  const ByteRows& a_;
  const int64_t row_begin_, row_end_, panel_begin_, panel_end_;
  WaitingRun waiting_;
  int whole_at_ = 0;
  alignas(64) int32_t whole_[2][kTile * kPanelColumns];
  alignas(64) float sums_[kRows * kPanels * kPanelColumns];
};

// Whole pairs of row tiles first, then what is left, so that tiles are shaped at most twice.
static void gemm_byte_block_amx(const GemmParams& g, const ByteRows& a, int64_t row_begin, int64_t row_end,
                                int64_t panel_begin, int64_t panel_end) {
  const int64_t whole = (row_end - row_begin) / (2 * kTileRows) * (2 * kTileRows);
  const int left = static_cast<int>(row_end - row_begin - whole);
  if (whole > 0) {
    shape_tiles(kTileRows, kTileRows);
    ByteBlockProduct<true>(g, a, row_begin, row_begin + whole, panel_begin, panel_end).run();
  }
  const int64_t row = row_begin + whole;
  if (left > kTileRows) {
    shape_tiles(kTileRows, left - kTileRows);
    ByteBlockProduct<true>(g, a, row, row_end, panel_begin, panel_end).run();
  } else if (left > 0) {
    shape_tiles(left, 0);
    ByteBlockProduct<false>(g, a, row, row_end, panel_begin, panel_end).run();
  }
  _tile_release();  // a thread that holds tiles is slower to switch
}

static void gemm_int8_amx(const GemmParams& g, Stream stream) {
  if (g.m < kFewestByteRows) return gemm_int8(g, stream);
  if (g.weight.rows <= 0) return;
  check_int8_gemm(g);
  using Block = ByteBlockProduct<true>;
  const ByteRows a = quantize_activations(g, stream);
  const double bytes = static_cast<double>(a.cols) * static_cast<double>(g.weight.rows);
  const double estimate_ns = bytes / 40.0 + bytes * static_cast<double>(g.m) / 1500.0;
  const int64_t panels = num_panels(g.weight), num_blocks = ceil_div(g.m, Block::kRows);
  GemmSplit split = split_panels(g, num_blocks, num_threads_of(stream), 2);
  const int64_t rows = lesser(Block::kRows, round_up(g.m, 2 * kTileRows));
  split.group = lesser(split.group, Block::kRows * Block::kPanels / rows);
  split.num_groups = ceil_div(panels, split.group);
  for_each_task(stream, num_blocks * split.num_groups, estimate_ns, [&](int64_t task) {
    const int64_t row = task / split.num_groups * Block::kRows, first = task % split.num_groups * split.group;
    gemm_byte_block_amx(g, a, row, lesser(g.m, row + Block::kRows), first, lesser(panels, first + split.group));
  });
}

static void gemm_amx_of_any_weight(const GemmParams& g, Stream stream) {
  g.weight.dtype == DType::i8 ? gemm_int8_amx(g, stream) : gemm_amx(g, stream);
}
