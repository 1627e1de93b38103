// Products of bf16 queries with keys, and of weights with values, on AMX tiles, for attention_tile.inl.
//
// A K tile of the cache is what TDPBF16PS takes as it lies. The weights of the values are rounded to bf16, as tensor
// cores take them, while their sum is that of the unrounded ones; V is paired by keys on the way, once for all rows of
// a tile. Every output element is one running sum over steps of 32 head elements, or of 32 keys at fixed positions, in
// which a key that a row does not see adds an exact zero. Tiles are used as in gemm_amx.inl.

constexpr int kChunkTiles = kChunkKeys / kTileTokens;
constexpr int64_t kKeyRowBytes = 2 * kTileTokens * sizeof(Bf16);  // a pair of head elements, all tokens of a K tile
constexpr int64_t kWeightRowBytes = kChunkKeys * sizeof(Bf16);
constexpr int64_t kScoreRowBytes = kChunkKeys * sizeof(float);
constexpr int kValueColumns = 2 * kTileTokens;  // head elements of V in one product of tiles

// Rows of a times tiles of b; tile j at step s is b[j] + s * b_step.
struct TileProduct {
  const Bf16* a;
  int64_t a_stride;  // in elements
  const Bf16* b[4];
  int64_t b_row_bytes;
  int64_t b_step;
  int64_t num_steps;
};

// Adds to the sums of 17 to 32 rows with b[0] and b[1].
static void add_products_of_rows(const TileProduct& t) {
  for (int64_t s = 0; s < t.num_steps; ++s) {
    _tile_loadd(4, t.a + s * kTileK, t.a_stride * 2);
    _tile_loadd(6, t.b[0] + s * t.b_step, t.b_row_bytes);
    _tile_loadd(7, t.b[1] + s * t.b_step, t.b_row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, t.a + kTileRows * t.a_stride + s * kTileK, t.a_stride * 2);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// Adds to the sums of at most 16 rows with two tiles of b, or with four.
template <bool kFour>
static void add_products(const TileProduct& t) {
  for (int64_t s = 0; s < t.num_steps; ++s) {
    _tile_loadd(4, t.a + s * kTileK, t.a_stride * 2);
    _tile_loadd(6, t.b[0] + s * t.b_step, t.b_row_bytes);
    _tile_loadd(7, t.b[1] + s * t.b_step, t.b_row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kFour) {
      _tile_loadd(6, t.b[2] + s * t.b_step, t.b_row_bytes);
      _tile_loadd(7, t.b[3] + s * t.b_step, t.b_row_bytes);
      _tile_dpbf16ps(2, 4, 6);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
}

// The sums of `rows` rows go to out[row][...], columns of b[0] and b[1] side by side, then those of b[2] and b[3].
static void store_products(int rows, bool four, float* out, int64_t row_bytes) {
  _tile_stored(0, out, row_bytes);
  _tile_stored(1, out + kTileTokens, row_bytes);
  if (rows > kTileRows) {
    float* high = out + kTileRows * row_bytes / static_cast<int64_t>(sizeof(float));
    _tile_stored(2, high, row_bytes);
    _tile_stored(3, high + kTileTokens, row_bytes);
  } else if (four) {
    _tile_stored(2, out + 2 * kTileTokens, row_bytes);
    _tile_stored(3, out + 3 * kTileTokens, row_bytes);
  }
}

static void add_any_products(const TileProduct& product, int rows, bool four) {
  if (rows > kTileRows) return add_products_of_rows(product);
  if (four) return add_products<true>(product);
  add_products<false>(product);
}

// The last head elements of K tiles that are less than a step, padded with zeros.
struct LastKeys {
  alignas(64) Bf16 tiles[kChunkTiles][kTileK * kTileTokens];

  void copy(const Bf16* const* keys, int64_t head_dim) {
    const int64_t whole = head_dim / kTileK * kTileK;
    const size_t bytes = static_cast<size_t>((head_dim - whole) * kTileTokens) * sizeof(Bf16);
    for (int t = 0; t < kChunkTiles; ++t) {
      memcpy(tiles[t], keys[t] + whole * kTileTokens, bytes);
      memset(reinterpret_cast<char*>(tiles[t]) + bytes, 0, sizeof(tiles[t]) - bytes);
    }
  }
};

// V of the keys [begin, end) of a chunk, those of a pair side by side: [pair][columns][2], where `columns` is head_dim
// in whole tiles. Other keys of the same steps are zeros. Returns whether all values are finite. With kAhead the next
// chunk is asked for on the way, line by line, since in one go its lines wait for each other; into the second level,
// which has more of them under way.
template <bool kAhead>
static bool pair_values(const Bf16* const* tiles, const ChunkTiles<Bf16>* next, int64_t head_dim, RowRange keys,
                        Bf16* out) {
  const int64_t columns = round_up(head_dim, kValueColumns);
  alignas(64) static constexpr uint16_t kLow[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                    8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  __m512i largest = _mm512_setzero_si512();
  for (int64_t key = keys.begin / kTileK * kTileK; key < round_up(keys.end, kTileK); key += 2) {
    const Bf16* rows[2];
    bool is_seen[2];
    for (int i = 0; i < 2; ++i) {
      is_seen[i] = key + i >= keys.begin && key + i < keys.end;
      rows[i] = tiles[(key + i) / kTileTokens] + (key + i) % kTileTokens * head_dim;
    }
    Bf16* pair = out + key * columns;
    const int64_t line = key % kTileTokens * head_dim;
    for (int64_t d = 0; d < columns; d += kValueColumns) {
      if constexpr (kAhead) {
        for (const int64_t at : {line + d, line + head_dim + d}) {
          _mm_prefetch(reinterpret_cast<const char*>(next->k[key / kTileTokens] + at), _MM_HINT_T1);
          _mm_prefetch(reinterpret_cast<const char*>(next->v[key / kTileTokens] + at), _MM_HINT_T1);
        }
      }
      const __mmask32 some = head_dim - d >= kValueColumns ? ~__mmask32{0} : (__mmask32{1} << (head_dim - d)) - 1;
      const __m512i even = _mm512_maskz_loadu_epi16(is_seen[0] ? some : 0, rows[0] + d);
      const __m512i odd = _mm512_maskz_loadu_epi16(is_seen[1] ? some : 0, rows[1] + d);
      largest = _mm512_max_epu16(largest, _mm512_and_si512(even, magnitude));
      largest = _mm512_max_epu16(largest, _mm512_and_si512(odd, magnitude));
      _mm512_store_si512(pair + 2 * d, _mm512_permutex2var_epi16(even, low, odd));
      _mm512_store_si512(pair + 2 * d + kValueColumns, _mm512_permutex2var_epi16(even, high, odd));
    }
  }
  return _mm512_cmpge_epu16_mask(largest, _mm512_set1_epi16(0x7f80)) == 0;
}

// Rows of a tile that pass through a chunk together.
struct RowSpan {
  int begin, count;
};

#include "cpu/attention_amx_few.inl"
#include "cpu/attention_amx_softmax.inl"

// The sums of up to 32 rows and 32 columns where they are kept.
struct OutTiles {
  float* out;
  int64_t stride;  // in elements
  bool has_high_rows, has_high_columns;

  void load() const {
    const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
    zero_sums();
    _tile_loadd(0, out, bytes);
    if (has_high_columns) _tile_loadd(1, out + kTileTokens, bytes);
    if (!has_high_rows) return;
    _tile_loadd(2, out + kTileRows * stride, bytes);
    if (has_high_columns) _tile_loadd(3, out + kTileRows * stride + kTileTokens, bytes);
  }
  void store() const {
    const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
    _tile_stored(0, out, bytes);
    if (has_high_columns) _tile_stored(1, out + kTileTokens, bytes);
    if (!has_high_rows) return;
    _tile_stored(2, out + kTileRows * stride, bytes);
    if (has_high_columns) _tile_stored(3, out + kTileRows * stride + kTileTokens, bytes);
  }
};

struct TileAttention {
  using Element = Bf16;
  static constexpr int kMaxRows = kMaxTileRows;
  static constexpr int kSpanRows = 2 * kTileRows;

  // Spans of several shapes take the largest: what it computes beyond the last row has room and is not read.
  static void begin_tile(const AttentionTile& tile) {
    const int64_t rows = lesser(tile.num_rows, kSpanRows);
    const bool is_one = tile.num_rows <= kSpanRows;
    shape_tiles(is_one ? static_cast<int>(lesser(rows, kTileRows)) : kTileRows,
                is_one ? static_cast<int>(greater(0, rows - kTileRows)) : kTileRows);
  }
  static void end_tile() { _tile_release(); }

  // Rows of queries one after the other, in whole steps of head elements.
  static const void* prepare_query(const Bf16* query, int64_t head_dim, int row, TileScratch& scratch) {
    const int64_t stride = round_up(head_dim, kTileK);
    Bf16* copy = reinterpret_cast<Bf16*>(scratch.converted) + row * stride;
    memcpy(copy, query, static_cast<size_t>(head_dim) * sizeof(Bf16));
    memset(copy + head_dim, 0, static_cast<size_t>(stride - head_dim) * sizeof(Bf16));
    return copy;
  }

  // The row's weights, exp(score - max), rounded to bf16; zeros for other keys that rows of the tile see. Returns the
  // sum of the unrounded ones.
  static float exponentiate(int row, RowRange keys, float max, TileScratch& scratch) {
    const float* scores = scratch.scores + row * kChunkKeys;
    Bf16* weights = scratch.weights + row * kChunkKeys;
    const VectorRange range = vectors_of(keys);
    const Vec::F shift = Vec::set1(max * -1.44269504f);
    Vec::F sums[2] = {Vec::zero(), Vec::zero()};
    zero_weights(scratch.seen.begin / kTileK * kTileK, range.begin, weights);
#pragma GCC unroll 4
    for (int i = range.begin; i < range.end; i += Vec::kWidth) {
      const Vec::F x = rough_exp2_of(Vec::fma(Vec::load(scores + i), Vec::set1(1.44269504f), shift));
      _mm256_store_si256(reinterpret_cast<__m256i*>(weights + i), (__m256i)_mm512_cvtneps_pbh(x));
      if (i / Vec::kWidth % 2 == 0) {
        sums[0] = Vec::add(sums[0], x);
      } else {
        sums[1] = Vec::add(sums[1], x);
      }
    }
    zero_weights(range.end, round_up(scratch.seen.end, kTileK), weights);
    return Vec::reduce_add(Vec::add(sums[0], sums[1]));
  }

  static void zero_weights(int64_t begin, int64_t end, Bf16* weights) {
    for (int64_t i = begin; i < end; i += Vec::kWidth) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(weights + i), _mm256_setzero_si256());
    }
  }

  // Dot products of the rows with the K tiles [first, end).
  static void score(RowSpan rows, const ChunkTiles<Bf16>& tiles, int64_t head_dim, int first, int end,
                    TileScratch& scratch) {
    const int64_t stride = round_up(head_dim, kTileK);
    const auto* queries = static_cast<const Bf16*>(scratch.query[rows.begin]);
    float* scores = scratch.scores + rows.begin * kChunkKeys;
    LastKeys last;
    if (head_dim % kTileK != 0) last.copy(tiles.k, head_dim);
    asm volatile("" ::: "memory");  // the intrinsics do not say what they read
    const int together = rows.count > kTileRows || end - first <= 2 ? 2 : 4;
    for (int at = first; at < end; at += together) {
      const int t = static_cast<int>(lesser(at, kChunkTiles - together));  // tiles that no row sees are there, too
      TileProduct product = {queries, stride, {}, kKeyRowBytes, kTileK * kTileTokens, head_dim / kTileK};
      TileProduct rest = {queries + head_dim / kTileK * kTileK, stride, {}, kKeyRowBytes, 0, 1};
      for (int j = 0; j < together; ++j) {
        product.b[j] = tiles.k[t + j];
        rest.b[j] = last.tiles[t + j];
      }
      zero_sums();
      add_any_products(product, rows.count, together == 4);
      if (head_dim % kTileK != 0) add_any_products(rest, rows.count, together == 4);
      store_products(rows.count, together == 4, scores + t * kTileTokens, kScoreRowBytes);
    }
  }

  // out += weights * values for the rows, over the steps of `keys`; `out` is that of the first row.
  static void add_values(RowSpan rows, const Bf16* values, int64_t head_dim, RowRange keys, const TileScratch& scratch,
                         float* out) {
    const int64_t columns = round_up(head_dim, kValueColumns), stride = out_stride_of(head_dim);
    const int64_t begin = keys.begin / kTileK * kTileK, num_steps = ceil_div(keys.end - begin, kTileK);
    asm volatile("" ::: "memory");
    for (int64_t d = 0; d < columns; d += kValueColumns) {
      const Bf16* first = values + begin * columns + 2 * d;
      const OutTiles tiles = {out + d, stride, rows.count > kTileRows, d + kTileTokens < stride};
      tiles.load();
      add_any_products({scratch.weights + rows.begin * kChunkKeys + begin,
                        kChunkKeys,
                        {first, first + kValueColumns},
                        columns * 4,
                        kTileK * columns,
                        num_steps},
                       rows.count, false);
      tiles.store();
    }
  }

  static void attend_chunk(const PagedAttentionParams& p, const AttentionTile& tile, int64_t chunk_begin,
                           const ChunkTiles<Bf16>& tiles, const ChunkTiles<Bf16>& next, TileScratch& scratch,
                           TileState& state) {
    const int64_t head_dim = p.kv.head_dim;
    RowRange keys[kMaxTileRows];
    find_visible(tile, chunk_begin, scratch, keys);
    if (tile.num_rows <= FewRows::kMaxRows && see_alike(keys, tile.num_rows)) {
      return FewRows::attend_chunk<TileAttention>(p, tile, chunk_begin, keys, tiles, next, scratch, state);
    }
    RowRange& seen = scratch.seen;
    seen = {kChunkKeys, 0};
    for (int r = 0; r < tile.num_rows; ++r) {
      if (keys[r].begin >= keys[r].end) continue;
      seen = {lesser(seen.begin, keys[r].begin), greater(seen.end, keys[r].end)};
    }
    // Long before they are read as tiles: a load of a tile waits until what it reads has left the store buffer.
    alignas(64) Bf16 values[kChunkKeys * kMaxHeadDim];
    // Few rows wait for memory; many find in a cache what the tiles before them brought there.
    const bool is_finite = tile.num_rows <= kTileRows ? pair_values<true>(tiles.v, &next, head_dim, seen, values)
                                                      : pair_values<false>(tiles.v, &next, head_dim, seen, values);
    // Span after span, so that what one of them stores has left the store buffer when it is read as tiles.
    const auto for_each_span = [&](const auto& body) {
      for (int begin = 0; begin < tile.num_rows; begin += kSpanRows) {
        body(RowSpan{begin, static_cast<int>(lesser(kSpanRows, tile.num_rows - begin))});
      }
    };
    for_each_span([&](RowSpan rows) {
      score(rows, tiles, head_dim, static_cast<int>(seen.begin / kTileTokens),
            static_cast<int>(ceil_div(seen.end, kTileTokens)), scratch);
    });
    const bool is_plain = WholeRows::are_plain(p);
    for (int begin = 0; begin < tile.num_rows; begin += WholeRows::kRows) {
      const int end = static_cast<int>(lesser(begin + WholeRows::kRows, tile.num_rows));
      if (is_plain && end == begin + WholeRows::kRows && WholeRows::see_all(keys + begin)) {
        WholeRows::weigh(p, begin, next, scratch, state);
        continue;
      }
      for (int r = begin; r < end; ++r) {
        if (keys[r].begin < keys[r].end) continue;
        zero_weights(seen.begin / kTileK * kTileK, round_up(seen.end, kTileK), scratch.weights + r * kChunkKeys);
      }
      weigh_keys<TileAttention>(p, begin, end, chunk_begin, keys, scratch, state);
    }
    {
      const FewRows::Flush flush;  // what products on tiles make of a denormal sum would have to be known
      correct_sums(tile.num_rows, head_dim, scratch, state);
    }
    for_each_span([&](RowSpan rows) {
      if (is_finite)
        add_values(rows, values, head_dim, seen, scratch, state.out + rows.begin * out_stride_of(head_dim));
    });
    if (!is_finite) add_values_by_rows(tile, tiles, head_dim, keys, values, scratch, state);
  }

  // What was summed before, to the new maximum; most chunks bring none.
  static void correct_sums(int num_rows, int64_t head_dim, const TileScratch& scratch, TileState& state) {
    const int64_t stride = out_stride_of(head_dim);
    for (int r = 0; r < num_rows; ++r) {
      if (scratch.correction[r] == 1.0f) continue;
      const Vec::F factor = Vec::set1(scratch.correction[r]);
      for (int64_t d = r * stride; d < (r + 1) * stride; d += Vec::kWidth) {
        Vec::store(state.out + d, Vec::mul(Vec::load(state.out + d), factor));
      }
    }
  }

  static bool see_alike(const RowRange* keys, int num_rows) {
    for (int r = 1; r < num_rows; ++r) {
      if (keys[r].begin != keys[0].begin || keys[r].end != keys[0].end) return false;
    }
    return keys[0].begin < keys[0].end;
  }

  // Zero times infinity is NaN: each row takes the values that it sees alone.
  static void add_values_by_rows(const AttentionTile& tile, const ChunkTiles<Bf16>& tiles, int64_t head_dim,
                                 const RowRange* keys, Bf16* values, const TileScratch& scratch, TileState& state) {
    alignas(64) float others[kSpanRows * kMaxHeadDim];
    for (int r = 0; r < tile.num_rows; ++r) {
      if (keys[r].begin >= keys[r].end) continue;
      const int begin = r / kSpanRows * kSpanRows;
      const RowSpan rows = {begin, static_cast<int>(lesser(kSpanRows, tile.num_rows - begin))};
      pair_values<false>(tiles.v, nullptr, head_dim, keys[r], values);
      const auto bytes = static_cast<size_t>(out_stride_of(head_dim)) * sizeof(float);
      memcpy(others, state.out + begin * out_stride_of(head_dim), rows.count * bytes);
      add_values(rows, values, head_dim, keys[r], scratch, others);
      memcpy(state.out + r * out_stride_of(head_dim), others + (r - begin) * out_stride_of(head_dim), bytes);
    }
  }
};

static void paged_attention_amx(const PagedAttentionParams& p, Stream stream) {
  if (p.kv.head_dim % 2 != 0) return paged_attention(p, stream);  // the last element of an odd head has no pair
  paged_attention_with<TileAttention>(p, stream);
}
