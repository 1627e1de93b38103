// The chunk of attention_amx.inl for few rows, on vectors, with the bits of its tiles: TDPBF16PS adds up 16 products of
// even and 16 of odd k by fused multiply-adds that flush denormals, then both sums together, then that to the element
// (Intel SDM; kernels_test compares every bit). A tile would be filled by as few rows, and its values have to be
// paired; here nothing is stored but scores, and a chunk waits for memory alone.

struct FewRows {
  static constexpr int kMaxRows = kFewRows;  // of a tile
  static constexpr int kRowsAtOnce = 4;      // in registers
  static constexpr int kStepPairs = kTileK / 2;

  // Denormals are zeros, as for tiles, while it lives.
  class Flush {
   public:
    Flush() : control_(_mm_getcsr()) {
      _mm_setcsr(control_ | kFlushToZero | kDenormalsAreZeros);
      asm volatile("" ::: "memory");
    }
    ~Flush() {
      asm volatile("" ::: "memory");
      _mm_setcsr(control_);
    }
    Flush(const Flush&) = delete;
    Flush& operator=(const Flush&) = delete;

   private:
    static constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZeros = 0x40;
    unsigned control_;
  };

  // The lower and the upper one of pairs of bf16.
  static __m512 lower_of(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
  static __m512 upper_of(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }

  // A line of the next chunk for each of this one; the first-level cache has fewer on their way (0.8 times the speed).
  [[gnu::always_inline]] static void fetch(const Bf16* line) {
    _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T1);
  }

  static void to_floats(const Bf16* from, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i += Vec::kWidth) Vec::store(to + i, load_up_to(from + i, count - i));
  }

  // scores[r][64] of R rows over the K tiles [first, end), T at a time; query[r] are floats.
  template <int R, int T>
  static void score_tiles(const float* query, int64_t query_stride, const Bf16* const* keys, const Bf16* const* ahead,
                          int64_t head_dim, float* scores) {
    __m512 sums[R][T];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) sums[r][t] = _mm512_setzero_ps();
    }
    for (int64_t begin = 0; begin < head_dim / 2; begin += kStepPairs) {
      __m512 even[R][T], odd[R][T];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) even[r][t] = odd[r][t] = _mm512_setzero_ps();
      }
      const int64_t end = lesser(head_dim / 2, begin + kStepPairs);
      for (int64_t pair = begin; pair < end; ++pair) {
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
          const __m512i two = _mm512_loadu_si512(keys[t] + pair * 2 * kTileTokens);
          if (ahead != nullptr) fetch(ahead[t] + pair * 2 * kTileTokens);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            const float* q = query + r * query_stride + 2 * pair;
            even[r][t] = _mm512_fmadd_ps(_mm512_set1_ps(q[0]), lower_of(two), even[r][t]);
            odd[r][t] = _mm512_fmadd_ps(_mm512_set1_ps(q[1]), upper_of(two), odd[r][t]);
          }
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) sums[r][t] = _mm512_add_ps(sums[r][t], _mm512_add_ps(even[r][t], odd[r][t]));
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) _mm512_storeu_ps(scores + r * kChunkKeys + t * kTileTokens, sums[r][t]);
    }
  }

  template <int R>
  [[gnu::noinline]] static void score(const float* query, int64_t query_stride, const Bf16* const* keys,
                                      const Bf16* const* ahead, int64_t head_dim, float* scores) {
    constexpr int kTogether = R <= 3 ? 4 : 2;
    for (int t = 0; t < kChunkTiles; t += kTogether) {
      score_tiles<R, kTogether>(query, query_stride, keys + t, ahead != nullptr ? ahead + t : nullptr, head_dim,
                                scores + t * kTileTokens);
    }
  }

  // out[r] += weights[r] * values for R rows over `keys`.
  template <int R>
  [[gnu::noinline]] static void add_values(const float* weights, const Bf16* const* tiles, const Bf16* const* ahead,
                                           int64_t head_dim, RowRange keys, float* out) {
    alignas(64) static constexpr uint32_t kLow[16] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    alignas(64) static constexpr uint32_t kEven[16] = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    const __m512i even = _mm512_load_si512(kEven), odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const int64_t stride = out_stride_of(head_dim);
    for (int64_t d = 0; d < head_dim; d += kValueColumns) {
      const __mmask32 some = head_dim - d >= kValueColumns ? ~__mmask32{0} : (__mmask32{1} << (head_dim - d)) - 1;
      __m512 total[R][2];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const float* from = out + r * stride + d;
        const __m512 first = _mm512_load_ps(from);
        const __m512 second = d + kTileTokens < stride ? _mm512_load_ps(from + kTileTokens) : _mm512_setzero_ps();
        total[r][0] = _mm512_permutex2var_ps(first, even, second);
        total[r][1] = _mm512_permutex2var_ps(first, odd, second);
      }
      for (int64_t begin = keys.begin / kTileK * kTileK; begin < keys.end; begin += kTileK) {
        __m512 parts[R][2][2];  // of even and odd keys; of even and odd columns
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          parts[r][0][0] = parts[r][0][1] = parts[r][1][0] = parts[r][1][1] = _mm512_setzero_ps();
        }
        const auto add = [&](int64_t key, int odd) __attribute__((always_inline)) {
          const int64_t at = key % kTileTokens * head_dim + d;
          const __m512i pairs = _mm512_maskz_loadu_epi16(some, tiles[key / kTileTokens] + at);
          if (ahead != nullptr) fetch(ahead[key / kTileTokens] + at);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            const __m512 weight = _mm512_set1_ps(weights[r * kChunkKeys + key]);
            parts[r][odd][0] = _mm512_fmadd_ps(weight, lower_of(pairs), parts[r][odd][0]);
            parts[r][odd][1] = _mm512_fmadd_ps(weight, upper_of(pairs), parts[r][odd][1]);
          }
        };
        int64_t key = greater(begin, keys.begin);
        const int64_t end = lesser(begin + kTileK, keys.end);
        if (key % 2 != 0 && key < end) add(key++, 1);
        for (; key + 2 <= end; key += 2) {
          add(key, 0);
          add(key + 1, 1);
        }
        if (key < end) add(key, 0);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          total[r][0] = _mm512_add_ps(total[r][0], _mm512_add_ps(parts[r][0][0], parts[r][1][0]));
          total[r][1] = _mm512_add_ps(total[r][1], _mm512_add_ps(parts[r][0][1], parts[r][1][1]));
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        float* to = out + r * stride + d;
        _mm512_store_ps(to, _mm512_permutex2var_ps(total[r][0], low, total[r][1]));
        if (d + kTileTokens >= stride) continue;
        _mm512_store_ps(to + kTileTokens, _mm512_permutex2var_ps(total[r][0], high, total[r][1]));
      }
    }
  }

  // Calls body(row, std::integral_constant<int, number of rows>) for up to kRowsAtOnce rows at a time.
  template <typename Body>
  static void for_rows(int num_rows, const Body& body) {
    for (int r = 0; r < num_rows; r += kRowsAtOnce) {
      switch (num_rows - r) {
        case 1:
          body(r, std::integral_constant<int, 1>());
          break;
        case 2:
          body(r, std::integral_constant<int, 2>());
          break;
        case 3:
          body(r, std::integral_constant<int, 3>());
          break;
        default:
          body(r, std::integral_constant<int, kRowsAtOnce>());
      }
    }
  }

  // All rows of the tile see the keys `seen` of the chunk, and no others.
  template <typename Method>
  static void attend_chunk(const PagedAttentionParams& p, const AttentionTile& tile, int64_t chunk_begin,
                           const RowRange* keys, const ChunkTiles<Bf16>& tiles, const ChunkTiles<Bf16>& next,
                           TileScratch& scratch, TileState& state) {
    const int64_t head_dim = p.kv.head_dim, stride = out_stride_of(head_dim);
    alignas(64) float queries[kMaxRows * kMaxHeadDim];
    alignas(64) float weights[kMaxRows * kChunkKeys];
    for (int r = 0; r < tile.num_rows; ++r) {
      to_floats(static_cast<const Bf16*>(scratch.query[r]), head_dim, queries + r * stride);
    }
    {
      const Flush flush;
      for_rows(tile.num_rows, [&](int r, auto count) {
        score<count()>(queries + r * stride, stride, tiles.k, r == 0 ? next.k : nullptr, head_dim,
                       scratch.scores + r * kChunkKeys);
      });
    }
    scratch.seen = keys[0];
    weigh_keys<Method>(p, 0, tile.num_rows, chunk_begin, keys, scratch, state);
    for (int r = 0; r < tile.num_rows; ++r) {
      to_floats(scratch.weights + r * kChunkKeys, kChunkKeys, weights + r * kChunkKeys);
    }
    const Flush flush;
    Method::correct_sums(tile.num_rows, head_dim, scratch, state);
    for_rows(tile.num_rows, [&](int r, auto count) {
      add_values<count()>(weights + r * kChunkKeys, tiles.v, r == 0 ? next.v : nullptr, head_dim, keys[0],
                          state.out + r * stride);
    });
  }
};
