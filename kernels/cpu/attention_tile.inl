// The loop over chunks and splits of a tile. What a chunk computes is in attention.inl, how a launch is cut into tiles
// in attention_launch.inl.

// State of all rows of a tile.
struct TileState {
  float max[kMaxTileRows];
  float sum[kMaxTileRows];
  alignas(64) float out[kMaxTileElements];
};

static inline int64_t out_stride_of(int64_t head_dim) { return round_up(head_dim, 16); }

// The relative biases of a chunk's keys for the query at `query` in the chunk's count; `bias` is that of distance 0.
// They lie in the table already unless the chunk goes beyond its reach.
static const float* bias_of_chunk(const float* bias, int64_t reach, int64_t query, float* room) {
  if (-query >= -reach && kChunkKeys - 1 - query <= reach) return bias - query;
  for (int64_t i = 0; i < kChunkKeys; ++i) room[i] = bias[greater(-reach, lesser(reach, i - query))];
  return room;
}

// The vectors of a chunk's scores that hold a visible key; what the others hold is never read.
struct VectorRange {
  int begin, end;  // in keys, whole vectors
};

[[gnu::always_inline]] static inline VectorRange vectors_of(RowRange keys) {
  return {static_cast<int>(keys.begin) / Vec::kWidth * Vec::kWidth, static_cast<int>(round_up(keys.end, Vec::kWidth))};
}

// Turns the dot products of visible keys into scores in place and returns their maximum; a masked key within their
// vectors becomes -infinity. `query` is the row's position in the chunk's count, `bias` what is added to each key's
// score, or null.
static float finish_scores(const PagedAttentionParams& p, float* scores, RowRange keys, float slope, int64_t query,
                           const float* bias) {
  const Vec::F lanes = lane_ids();
  const Vec::F minus_infinity = Vec::set1(-__builtin_inff());
  const Vec::F begin = Vec::set1(static_cast<float>(keys.begin)), end = Vec::set1(static_cast<float>(keys.end));
  const bool is_partial = keys.begin > 0 || keys.end < kChunkKeys;
  const VectorRange range = vectors_of(keys);
  Vec::F max = minus_infinity;
#pragma GCC unroll 4
  for (int i = range.begin; i < range.end; i += Vec::kWidth) {
    Vec::F x = Vec::mul(Vec::load(scores + i), Vec::set1(p.scale));
    const Vec::F key = Vec::add(lanes, Vec::set1(static_cast<float>(i)));
    if (p.softcap > 0.0f) x = softcap_of(x, p.softcap);
    if (p.alibi_slopes != nullptr) {
      x = Vec::fma(Vec::set1(slope), Vec::sub(key, Vec::set1(static_cast<float>(query))), x);
    }
    if (bias != nullptr) x = Vec::add(x, Vec::load(bias + i));
    if (is_partial) x = Vec::if_less(key, begin, minus_infinity, Vec::if_less(key, end, x, minus_infinity));
    Vec::store(scores + i, x);
    max = Vec::max(max, x);  // a NaN score stays: it must show in the output
  }
  return Vec::reduce_max(max);
}

template <typename T, int R = Vec::kScoreRows>
static void score_block(int rows, const void* const* query, const ChunkTiles<T>& tiles, int64_t head_dim,
                        float* scores) {
  if constexpr (R > 1) {
    if (rows < R) return score_block<T, R - 1>(rows, query, tiles, head_dim, scores);
  }
  for (int t = 0; t < kChunkKeys / kTileTokens; t += Vec::kScoreTiles) {
    score_rows<T, R>(query, tiles, head_dim, t, scores);
  }
}

template <typename T, int R = Vec::kValueRows>
static void value_block(int rows, const RowRange* keys, const float* scores, const T* const* tiles,
                        const T* const* ahead, int64_t head_dim, const float* scale, float* out) {
  if constexpr (R > 1) {
    if (rows < R) return value_block<T, R - 1>(rows, keys, scores, tiles, ahead, head_dim, scale, out);
  }
  add_values_of_rows<T, R>(keys, scores, tiles, ahead, head_dim, scale, out, out_stride_of(head_dim));
}

static bool sees_nothing(const RowRange* keys, int rows) {
  for (int r = 0; r < rows; ++r) {
    if (keys[r].begin < keys[r].end) return false;
  }
  return true;
}

// The tiles of the chunk at chunk_begin; keys are all that some row of the tile sees, and the chunk holds one of them.
template <typename T>
static ChunkTiles<T> find_tiles(const PagedAttentionParams& p, const AttentionTile& tile, int64_t chunk_begin,
                                RowRange keys) {
  ChunkTiles<T> tiles;
  const int64_t first = greater(keys.begin, chunk_begin) / kTileTokens, last = (keys.end - 1) / kTileTokens;
  for (int64_t t = 0; t < kChunkKeys / kTileTokens; ++t) {
    const int64_t seen = greater(first, lesser(last, chunk_begin / kTileTokens + t));
    const auto token = static_cast<uint32_t>(seen * kTileTokens), block_size = static_cast<uint32_t>(p.kv.block_size);
    const int64_t offset = tile_offset(p.kv, tile.block_table[token / block_size], tile.kv_head, token % block_size);
    tiles.k[t] = static_cast<const T*>(p.kv.k) + offset;
    tiles.v[t] = static_cast<const T*>(p.kv.v) + offset;
  }
  return tiles;
}

// The keys of the chunk at chunk_begin that each row sees, in the chunk's count; {0, 0} for none.
static void find_visible(const AttentionTile& tile, int64_t chunk_begin, const TileScratch& scratch, RowRange* keys) {
  for (int r = 0; r < tile.num_rows; ++r) {
    keys[r] = {greater(0, scratch.visible[r].begin - chunk_begin),
               lesser(kChunkKeys, scratch.visible[r].end - chunk_begin)};
    if (keys[r].begin >= keys[r].end) keys[r] = {0, 0};
  }
}

// From dot products to the weights of values: the online softmax of a chunk. scratch.correction becomes the factor of
// what was summed before, 1 for a row that sees nothing here.
template <typename Method>
static void weigh_keys(const PagedAttentionParams& p, int row_begin, int row_end, int64_t chunk_begin,
                       const RowRange* keys, TileScratch& scratch, TileState& state) {
  for (int r = row_begin; r < row_end; ++r) {
    scratch.correction[r] = 0.0f;
    if (keys[r].begin >= keys[r].end) continue;
    const int64_t query = scratch.position[r] - chunk_begin;
    alignas(64) float room[kChunkKeys];
    const float* bias = scratch.bias[r];
    if (bias != nullptr) bias = bias_of_chunk(bias, p.relative_reach, query, room);
    const float chunk_max = finish_scores(p, scratch.scores + r * kChunkKeys, keys[r], scratch.slope[r], query, bias);
    const float max = chunk_max > state.max[r] ? chunk_max : state.max[r];
    scratch.correction[r] = state.max[r] - max;
    state.max[r] = max;
  }
  for (int r = row_begin; r < row_end; r += Vec::kWidth) {
    Vec::store(scratch.correction + r, exp_of(Vec::load(scratch.correction + r)));
  }
  for (int r = row_begin; r < row_end; ++r) {
    if (keys[r].begin >= keys[r].end) continue;
    const float sum = Method::exponentiate(r, keys[r], state.max[r], scratch);
    state.sum[r] = state.sum[r] * scratch.correction[r] + sum;
  }
}

// How products with keys and values are computed: on vectors, for every element type.
template <typename T>
struct VectorAttention {
  using Element = T;
  static constexpr int kMaxRows = 32;  // of a tile

  static void begin_tile(const AttentionTile&) {}
  static void end_tile() {}

  // The query as the score loops read it: converted unless they read it in place.
  static const void* prepare_query(const T* query, int64_t head_dim, int row, TileScratch& scratch) {
    if constexpr (std::is_same_v<T, QueryElement<T>>) {
      return query;
    } else {
      float* converted = scratch.converted + row * out_stride_of(head_dim);
      for (int64_t i = 0; i < head_dim; i += Vec::kWidth) {
        Vec::store(converted + i, load_up_to(query + i, head_dim - i));
      }
      return converted;
    }
  }

  // The row's scores become exp(scores - max) where keys are visible; returns their sum, in a fixed order in which
  // masked keys are exact zeros.
  static float exponentiate(int row, RowRange keys, float max, TileScratch& scratch) {
    float* scores = scratch.scores + row * kChunkKeys;
    const VectorRange range = vectors_of(keys);
    Vec::F sums[2] = {Vec::zero(), Vec::zero()};
#pragma GCC unroll 4
    for (int i = range.begin; i < range.end; i += Vec::kWidth) {
      const Vec::F x = exp_of(Vec::sub(Vec::load(scores + i), Vec::set1(max)));
      Vec::store(scores + i, x);
      if (i / Vec::kWidth % 2 == 0) {
        sums[0] = Vec::add(sums[0], x);
      } else {
        sums[1] = Vec::add(sums[1], x);
      }
    }
    return Vec::reduce_add(Vec::add(sums[0], sums[1]));
  }

  static void attend_chunk(const PagedAttentionParams& p, const AttentionTile& tile, int64_t chunk_begin,
                           const ChunkTiles<T>& tiles, const ChunkTiles<T>& next, TileScratch& scratch,
                           TileState& state) {
    const int64_t head_dim = p.kv.head_dim;
    RowRange keys[kMaxTileRows];
    find_visible(tile, chunk_begin, scratch, keys);
    for (int r = 0; r < tile.num_rows; r += Vec::kScoreRows) {
      const int rows = static_cast<int>(lesser(Vec::kScoreRows, tile.num_rows - r));
      if (sees_nothing(keys + r, rows)) continue;
      score_block(rows, scratch.query + r, tiles, head_dim, scratch.scores + r * kChunkKeys);
    }
    weigh_keys<VectorAttention>(p, 0, tile.num_rows, chunk_begin, keys, scratch, state);
    for (int r = 0; r < tile.num_rows; r += Vec::kValueRows) {
      const int rows = static_cast<int>(lesser(Vec::kValueRows, tile.num_rows - r));
      if (sees_nothing(keys + r, rows)) continue;
      value_block(rows, keys + r, scratch.scores + r * kChunkKeys, tiles.v, next.k, head_dim, scratch.correction + r,
                  state.out + r * out_stride_of(head_dim));
    }
  }
};

static void clear_states(const AttentionTile& tile, int64_t head_dim, TileState& state) {
  const int64_t out_size = tile.num_rows * out_stride_of(head_dim);
  for (int64_t i = 0; i < out_size; i += Vec::kWidth) Vec::store(state.out + i, Vec::zero());
  for (int r = 0; r < tile.num_rows; ++r) {
    state.max[r] = -__builtin_inff();
    state.sum[r] = 0.0f;
  }
}

// Adds those of the keys `wanted` that a tile sees to its state. They begin with a chunk.
template <typename Method>
static void attend_keys(const PagedAttentionParams& p, const AttentionTile& tile, RowRange wanted, TileScratch& scratch,
                        TileState& state) {
  using T = typename Method::Element;
  // Rows ascend in position, and with them both ends of what they see.
  const RowRange all = {scratch.visible[0].begin, scratch.visible[tile.num_rows - 1].end};
  const int64_t end = lesser(all.end, wanted.end);
  int64_t begin = greater(all.begin, wanted.begin) / kChunkKeys * kChunkKeys;
  if (begin >= end) return;
  ChunkTiles<T> tiles = find_tiles<T>(p, tile, begin, all);
  for (; begin < end; begin += kChunkKeys) {
    const bool has_next = begin + kChunkKeys < all.end;
    const ChunkTiles<T> next = has_next ? find_tiles<T>(p, tile, begin + kChunkKeys, all) : tiles;
    Method::attend_chunk(p, tile, begin, tiles, next, scratch, state);
    tiles = next;
  }
}

// The state of a tile over the keys of one split.
template <typename Method>
static void attend_split(const PagedAttentionParams& p, const AttentionTile& tile, int64_t split, TileScratch& scratch,
                         TileState& state) {
  clear_states(tile, p.kv.head_dim, state);
  attend_keys<Method>(p, tile, {split * kSplitKeys, (split + 1) * kSplitKeys}, scratch, state);
}

// Row r of the tile becomes head `head` of the launch's token `token`, which is at `position` and sees `visible`.
template <typename Method>
static void prepare_row(const PagedAttentionParams& p, int r, int64_t token, int64_t head, int64_t position,
                        RowRange visible, TileScratch& scratch) {
  const auto* query = static_cast<const typename Method::Element*>(p.q) + token * p.q_stride + head * p.kv.head_dim;
  scratch.query[r] = Method::prepare_query(query, p.kv.head_dim, r, scratch);
  scratch.position[r] = position;
  scratch.visible[r] = visible;
  scratch.slope[r] = p.alibi_slopes != nullptr ? p.alibi_slopes[head] : 0.0f;
  const int64_t reach = p.relative_reach;
  scratch.bias[r] = p.relative_bias != nullptr ? p.relative_bias + head * (2 * reach + 1) + reach : nullptr;
}

// Rows of the tile: where their queries lie and which keys they see.
template <typename Method>
static void prepare_rows(const PagedAttentionParams& p, const AttentionTile& tile, TileScratch& scratch) {
  const int64_t group = p.num_heads / p.kv.num_kv_heads;
  const int64_t ahead = p.causal ? 1 : p.window > 0 ? p.window : tile.kv_len;
  for (int r = 0; r < tile.num_rows; ++r) {
    const int64_t row = tile.row_begin + r;
    const int64_t position = tile.first_position + row / group;
    const int64_t begin = p.window > 0 ? greater(0, position + 1 - p.window) : 0;
    prepare_row<Method>(p, r, tile.token_begin + row / group, tile.kv_head * group + row % group, position,
                        {begin, lesser(tile.kv_len, position + ahead)}, scratch);
  }
}

// out = state.out / state.sum, after the sink has joined the sum.
template <typename T>
static void write_rows(const PagedAttentionParams& p, const AttentionTile& tile, TileState& state) {
  const int64_t head_dim = p.kv.head_dim;
  const int64_t group = p.num_heads / p.kv.num_kv_heads;
  for (int r = 0; r < tile.num_rows; ++r) {
    const int64_t row = tile.row_begin + r;
    const int64_t head = tile.kv_head * group + row % group;
    float* sums = state.out + r * out_stride_of(head_dim);
    if (p.sinks != nullptr) {
      float sink = p.sinks[head], one = 1.0f;
      alignas(64) float nothing[kMaxHeadDim + Vec::kWidth];
      for (int64_t i = 0; i < head_dim; i += Vec::kWidth) Vec::store(nothing + i, Vec::zero());
      merge_states({&state.max[r], &state.sum[r], sums}, {&sink, &one, nothing}, head_dim);
    }
    const Vec::F factor = Vec::set1(state.sum[r] == 0.0f ? 0.0f : 1.0f / state.sum[r]);
    T* out = static_cast<T*>(p.out) + (tile.token_begin + row / group) * p.out_stride + head * head_dim;
    for (int64_t i = 0; i < head_dim; i += Vec::kWidth) {
      // A sum of zeros may be -0, or 0 where zeros of other rows' keys were added: here all are 0.
      store_up_to(out + i, Vec::fma(Vec::load(sums + i), factor, Vec::zero()), head_dim - i);
    }
  }
}

static void merge_tiles(const AttentionTile& tile, int64_t head_dim, TileState& left, TileState& right) {
  const int64_t stride = out_stride_of(head_dim);
  for (int r = 0; r < tile.num_rows; ++r) {
    merge_states({&left.max[r], &left.sum[r], left.out + r * stride},
                 {&right.max[r], &right.sum[r], right.out + r * stride}, head_dim);
  }
}
