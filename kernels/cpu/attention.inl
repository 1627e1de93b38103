// Attention over the paged cache, flash style (Dao et al. 2022). A tile is up to 32 query rows (token, head) of one
// sequence and one KV head (64 on AMX tiles), which share every load of K and V. Keys are visited in chunks of 64 and
// splits of 1024 at fixed positions; a row's running maximum, sum and output change with its own visible keys alone:
//   visible keys of a row in a chunk   [row.begin, row.end)     scores outside become -infinity by selection
//   keys of a row block in P V         [own begin, common begin) [common) [common end, own end), ascending for each row
//   keys of a page past kv_lens, or before every window           never loaded as V, never scored into a row
// so its bits are those of a decode step at its position. Partial states of splits merge in order (softmax_state.inl).

struct AttentionTile {
  int64_t token_begin;  // of the launch
  int64_t kv_len;
  int64_t first_position;  // position of the query token_begin
  int64_t row_begin;       // rows are (token, head of the group), token-major, from token_begin on
  int num_rows;
  int64_t kv_head;
  const int32_t* block_table;
  int32_t seq;  // of the launch
};

struct RowRange {
  int64_t begin, end;
};

// The K and V tiles of a chunk. Tiles that no row sees repeat a seen one, so that nothing reads the block table where
// it is not valid.
template <typename T>
struct ChunkTiles {
  const T* k[kChunkKeys / kTileTokens];
  const T* v[kChunkKeys / kTileTokens];
};

// What a tile works in: on the stack of its task.
struct TileScratch {
  alignas(64) float scores[kMaxTileRows * kChunkKeys];
  alignas(64) float converted[kMaxTileElements];  // query rows as float where they are not used as they lie
  const void* query[kMaxTileRows];
  RowRange visible[kMaxTileRows];
  int64_t position[kMaxTileRows];
  float slope[kMaxTileRows];
  const float* bias[kMaxTileRows];  // of distance 0; null: there is none
  alignas(64) float correction[kMaxTileRows];
  RowRange seen;                                        // keys of the chunk that some row sees, for products on tiles:
  alignas(64) Bf16 weights[kMaxTileRows * kChunkKeys];  // weights of the values, zeros for those a row does not see
};

// Elements of the query as the score loops read them: the dot instruction takes bf16 as it lies.
template <typename T>
using QueryElement = std::conditional_t<std::is_same_v<T, Bf16> && Vec::kDotBf16, Bf16, float>;

template <typename T>
[[gnu::always_inline]] static inline void prefetch_values(const ChunkTiles<T>& chunk, int first_tile, int64_t offset) {
#pragma GCC unroll 4
  for (int t = 0; t < Vec::kScoreTiles; ++t) Vec::prefetch(chunk.v[first_tile + t] + offset);
}

// scores[r][64] = q[r] . k for R rows and kScoreTiles key tiles from `first_tile` on. The cache is read in pieces of
// one tile, too short for the hardware to run ahead: the V tiles, of the same size, are prefetched while K is
// multiplied.
template <typename T, int R>
static void score_rows(const void* const* query, const ChunkTiles<T>& chunk, int64_t head_dim, int first_tile,
                       float* scores) {
  const T* const* tiles = chunk.k;
  using Q = QueryElement<T>;
  constexpr int kTileVecs = kTileTokens / Vec::kWidth;
  constexpr int kVecs = Vec::kScoreTiles * kTileVecs;
  Vec::F sum[R][kVecs];
  const Q* q[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    q[r] = static_cast<const Q*>(query[r]);
#pragma GCC unroll 16
    for (int j = 0; j < kVecs; ++j) sum[r][j] = Vec::zero();
  }
  int64_t d = 0;
  if constexpr (std::is_same_v<Q, Bf16>) {
    for (; d + 2 <= head_dim; d += 2) {
      prefetch_values(chunk, first_tile, d * kTileTokens);
      Vec::U keys[kVecs];
#pragma GCC unroll 16
      for (int j = 0; j < kVecs; ++j) {
        keys[j] = Vec::load_u(tiles[first_tile + j / kTileVecs] + (d * kTileTokens + j % kTileVecs * Vec::kWidth * 2));
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        uint32_t pair;
        memcpy(&pair, q[r] + d, sizeof(pair));
        const Vec::U two = Vec::set1_u(pair);
#pragma GCC unroll 16
        for (int j = 0; j < kVecs; ++j) sum[r][j] = Vec::dot(sum[r][j], two, keys[j]);
      }
    }
  } else if constexpr (std::is_same_v<T, Bf16>) {
    for (; d + 2 <= head_dim; d += 2) {
      prefetch_values(chunk, first_tile, d * kTileTokens);
#pragma GCC unroll 16
      for (int j = 0; j < kVecs; ++j) {
        Vec::F even, odd;
        const T* tile = tiles[first_tile + j / kTileVecs] + j % kTileVecs * Vec::kWidth * 2;
        Vec::load_pairs(tile + d * kTileTokens, &even, &odd);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          sum[r][j] = Vec::fma(Vec::set1(q[r][d]), even, sum[r][j]);
          sum[r][j] = Vec::fma(Vec::set1(q[r][d + 1]), odd, sum[r][j]);
        }
      }
    }
  }
  for (; d < head_dim; ++d) {
    prefetch_values(chunk, first_tile, d * kTileTokens);
#pragma GCC unroll 16
    for (int j = 0; j < kVecs; ++j) {
      const Vec::F keys = Vec::load(tiles[first_tile + j / kTileVecs] + d * kTileTokens + j % kTileVecs * Vec::kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r][j] = Vec::fma(Vec::set1(cpu::to_float(q[r][d])), keys, sum[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int j = 0; j < kVecs; ++j) {
      Vec::store(scores + r * kChunkKeys + first_tile * kTileTokens + j * Vec::kWidth, sum[r][j]);
    }
  }
}

// out[r][0, count) = out * scale[r] + sum over keys [begin, end) of p[r][key] * v[key][offset ...], keys ascending. On
// the way the K tiles `ahead`, of the next chunk, are prefetched.
template <typename T, int R, int kVecs>
[[gnu::always_inline]] static inline void add_values(const float* p, const T* const* tiles, const T* const* ahead,
                                                     int64_t head_dim, int64_t offset, int begin, int end,
                                                     const float* scale, float* out, int64_t out_stride,
                                                     int64_t count) {
  Vec::F sum[R][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) {
      sum[r][j] = Vec::mul(Vec::load(out + r * out_stride + j * Vec::kWidth), Vec::set1(scale[r]));
    }
  }
  for (int key = begin; key < end; ++key) {
    const int64_t at = key % kTileTokens * head_dim + offset;
    const T* value = tiles[key / kTileTokens] + at;
#pragma GCC unroll 8
    for (int j = 0; j < kVecs * Vec::kWidth; j += 64 / static_cast<int>(sizeof(T))) {
      Vec::prefetch(ahead[key / kTileTokens] + at + j);
    }
    Vec::F v[kVecs];
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) {
      v[j] = kVecs > 1 ? Vec::load(value + j * Vec::kWidth) : load_up_to(value, count);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec::F weight = Vec::set1(p[r * kChunkKeys + key]);
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j) sum[r][j] = Vec::fma(weight, v[j], sum[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) Vec::store(out + r * out_stride + j * Vec::kWidth, sum[r][j]);
  }
}

template <typename T, int R>
static void add_values_of_keys(const float* p, const T* const* tiles, const T* const* ahead, int64_t head_dim,
                               int64_t begin, int64_t end, const float* scale, float* out, int64_t out_stride) {
  constexpr int64_t kBlock = Vec::kValueVecs * Vec::kWidth;
  const int first = static_cast<int>(begin), last = static_cast<int>(end);
  int64_t d = 0;
  for (; d + kBlock <= head_dim; d += kBlock) {
    add_values<T, R, Vec::kValueVecs>(p, tiles, ahead, head_dim, d, first, last, scale, out + d, out_stride, kBlock);
  }
  for (; d < head_dim; d += Vec::kWidth) {
    const int64_t count = lesser(Vec::kWidth, head_dim - d);
    add_values<T, R, 1>(p, tiles, ahead, head_dim, d, first, last, scale, out + d, out_stride, count);
  }
}

// The chunk's part of the output for R rows whose visible keys may differ at both ends.
template <typename T, int R>
static void add_values_of_rows(const RowRange* keys, const float* p, const T* const* tiles, const T* const* ahead,
                               int64_t head_dim, const float* scale, float* out, int64_t out_stride) {
  static constexpr float kOnes[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  static_assert(Vec::kValueRows <= 8);
  int64_t begin = 0, end = kChunkKeys;
  for (int r = 0; r < R; ++r) {
    begin = greater(begin, keys[r].begin);
    end = lesser(end, keys[r].end);
  }
  const bool has_common = begin < end;
  bool even_begin = has_common;
  for (int r = 0; r < R; ++r) even_begin = even_begin && keys[r].begin == begin;
  for (int r = 0; r < R && !even_begin; ++r) {
    if (keys[r].begin >= keys[r].end) continue;  // the row sees nothing here: it stays as it is
    add_values_of_keys<T, 1>(p + r * kChunkKeys, tiles, ahead, head_dim, keys[r].begin,
                             has_common ? begin : keys[r].end, scale + r, out + r * out_stride, out_stride);
  }
  if (!has_common) return;
  add_values_of_keys<T, R>(p, tiles, ahead, head_dim, begin, end, even_begin ? scale : kOnes, out, out_stride);
  for (int r = 0; r < R; ++r) {
    if (end >= keys[r].end) continue;
    add_values_of_keys<T, 1>(p + r * kChunkKeys, tiles, ahead, head_dim, end, keys[r].end, kOnes, out + r * out_stride,
                             out_stride);
  }
}
