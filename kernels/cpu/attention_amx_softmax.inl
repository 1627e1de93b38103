// The softmax of attention_amx.inl for sixteen rows that see all of a chunk, where scores are nothing but scaled: what
// weigh_keys() does row by row, with the same bits. A chunk gives a row four vectors, so that one row's sums across
// lanes cost as much as its exponentials; those of sixteen rows are taken together.

struct WholeRows {
  static constexpr int kRows = Vec::kWidth;

  static bool are_plain(const PagedAttentionParams& p) {
    return p.softcap <= 0.0f && p.alibi_slopes == nullptr && p.relative_bias == nullptr && p.scale > 0.0f;
  }
  static bool see_all(const RowRange* keys) {
    for (int r = 0; r < kRows; ++r) {
      if (keys[r].begin != 0 || keys[r].end != kChunkKeys) return false;
    }
    return true;
  }

  // Lane r of the result is that of of_row(r) reduced in the order of Vec::reduce_add: lanes 8 apart, then 4, 2 and 1.
  // Of a number of rows the result is a step on the way there; `letter` counts them in the order they meet in.
  template <__m512 (*both)(__m512, __m512), int kCount = kRows, typename OfRow>
  [[gnu::always_inline]] static inline __m512 across_lanes(const OfRow& of_row, int letter = 0) {
    if constexpr (kCount == 1) {
      return of_row(letter % 4 * 4 + letter / 4);
    } else {
      const __m512 a = across_lanes<both, kCount / 2>(of_row, letter);
      const __m512 b = across_lanes<both, kCount / 2>(of_row, letter + kCount / 2);
      if constexpr (kCount == 2) return both(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
      if constexpr (kCount == 4) return both(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
      if constexpr (kCount == 8) return both(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
      return both(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
    }
  }

  // The values of a key of the next chunk for each row: they are read first there, and nothing is read here.
  [[gnu::always_inline]] static inline void fetch_values(const ChunkTiles<Bf16>& next, int key, int64_t head_dim) {
    const Bf16* values = next.v[key / kTileTokens] + key % kTileTokens * head_dim;
    for (int64_t d = 0; d < head_dim; d += kValueColumns) {
      _mm_prefetch(reinterpret_cast<const char*>(values + d), _MM_HINT_T0);
    }
  }

  // For the rows from `first` on, a multiple of kRows.
  static void weigh(const PagedAttentionParams& p, int first, const ChunkTiles<Bf16>& next, TileScratch& scratch,
                    TileState& state) {
    const float* scores = scratch.scores + first * kChunkKeys;
    Bf16* weights = scratch.weights + first * kChunkKeys;
    const Vec::F scale = Vec::set1(p.scale), log2e = Vec::set1(1.44269504f);
    const auto largest = [&](int r) __attribute__((always_inline)) {
      const float* row = scores + r * kChunkKeys;
      return Vec::max(Vec::max(Vec::load(row), Vec::load(row + 16)),
                      Vec::max(Vec::load(row + 32), Vec::load(row + 48)));
    };
    const Vec::F before = Vec::load(state.max + first);
    // Rounding keeps order, so the largest scaled score is the largest one scaled.
    const Vec::F max = Vec::max(Vec::mul(across_lanes<Vec::max>(largest), scale), before);
    const Vec::F correction = exp_of(Vec::sub(before, max));
    Vec::store(scratch.correction + first, correction);
    Vec::store(state.max + first, max);
    alignas(64) float shifts[kRows];
    Vec::store(shifts, Vec::mul(max, Vec::set1(-1.44269504f)));
    const auto exponentiate = [&](int r) __attribute__((always_inline)) {
      const Vec::F shift = Vec::set1(shifts[r]);
      Vec::F x[4];
      fetch_values(next, first + r, p.kv.head_dim);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Vec::F score = Vec::mul(Vec::load(scores + r * kChunkKeys + i * Vec::kWidth), scale);
        x[i] = rough_exp2_of(Vec::fma(score, log2e, shift));
        _mm256_store_si256(reinterpret_cast<__m256i*>(weights + r * kChunkKeys + i * Vec::kWidth),
                           (__m256i)_mm512_cvtneps_pbh(x[i]));
      }
      return Vec::add(Vec::add(x[0], x[2]), Vec::add(x[1], x[3]));
    };
    const Vec::F sum = across_lanes<Vec::add>(exponentiate);
    Vec::store(state.sum + first, Vec::add(Vec::mul(Vec::load(state.sum + first), correction), sum));
  }
};
