// Vec for AVX2, FMA and F16C: 8 floats in a register.
//
// Included inside the target region and namespace of backend_avx2.cpp, where the std and intrinsics headers already
// are; it is no header on its own. max(a, b) and min(a, b) give b when one of them is NaN, in every Vec.
struct Vec {
  static constexpr int kWidth = 8;
  static constexpr bool kDotBf16 = false;
  static constexpr int kGemmRows = 3;  // 12 accumulators + 2 of B + 1 of A
  static constexpr int kScoreRows = 4;
  static constexpr int kScoreTiles = 1;
  static constexpr int kValueRows = 4;
  static constexpr int kValueVecs = 2;
  using F = __m256;
  using U = __m256i;

  static __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load_part(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void store_part(float* p, F x, int n) { _mm256_maskstore_ps(p, first(n), x); }

  static __m128i load_halves(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static __m128i load_halves_part(const void* p, int n) {
    alignas(16) uint16_t halves[8] = {};
    memcpy(halves, p, static_cast<size_t>(n) * 2);
    return load_halves(halves);
  }
  static void store_halves(void* p, __m128i x) { _mm_storeu_si128(static_cast<__m128i*>(p), x); }
  static void store_halves_part(void* p, __m128i x, int n) {
    alignas(16) uint16_t halves[8];
    store_halves(halves, x);
    memcpy(p, halves, static_cast<size_t>(n) * 2);
  }

  static F widen_bf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
  static __m128i narrow_bf16(F x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i wide = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(wide, wide), 0x08);
    return _mm256_castsi256_si128(packed);
  }
  static F load(const Bf16* p) { return widen_bf16(load_halves(p)); }
  static F load_part(const Bf16* p, int n) { return widen_bf16(load_halves_part(p, n)); }
  static void store(Bf16* p, F x) { store_halves(p, narrow_bf16(x)); }
  static void store_part(Bf16* p, F x, int n) { store_halves_part(p, narrow_bf16(x), n); }

  static __m128i narrow_f16(F x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F load(const F16* p) { return _mm256_cvtph_ps(load_halves(p)); }
  static F load_part(const F16* p, int n) { return _mm256_cvtph_ps(load_halves_part(p, n)); }
  static void store(F16* p, F x) { store_halves(p, narrow_f16(x)); }
  static void store_part(F16* p, F x, int n) { store_halves_part(p, narrow_f16(x), n); }

  static void load_pairs(const Bf16* p, F* even, F* odd) {
    const __m256i pairs = load_u(p);
    *even = first_of_pair(pairs);
    *odd = second_of_pair(pairs);
  }
  static U load_u(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

  static F first_of_pair(U x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
  static F second_of_pair(U x) {
    return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  // acc += a.first * b.first, then += a.second * b.second
  static F dot(F acc, U a, U b) {
    return fma(second_of_pair(a), second_of_pair(b), fma(first_of_pair(a), first_of_pair(b), acc));
  }

  template <typename T>
  static void store_two(T* p, F low, F high) {
    store(p, low);
    store(p + kWidth, high);
  }

  // Sums of products of bytes: four a lane. Signs go from the weights to a, so that the sums of two products fit 16
  // bits.
  using I = __m256i;
  static constexpr int kByteOffset = 0;
  static I set1_i(int32_t x) { return _mm256_set1_epi32(x); }
  static U load_bytes(const int8_t* p) { return load_u(p); }
  static I dot_bytes(I acc, U w, U a) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static F byte_sums(I x) { return _mm256_cvtepi32_ps(x); }
  static void store_bytes(int8_t* p, F x) {  // whole numbers
    const __m256i wide = _mm256_cvtps_epi32(x);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(halves, halves));
  }

  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F divide_roughly(F a, F b) { return div(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F pow2(F n) {  // 2^n for whole n in [-127, 128]: 0 at -127, infinity at 128
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
  }
  static F abs(F x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
  // a < b ? x : y
  static F if_less(F a, F b, F x, F y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
  static bool any_at_least(F a, F b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)) != 0; }
  static int count_at_least(F a, F b) {
    return __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ))));
  }
  static F nan_to(F x, F replacement) { return _mm256_blendv_ps(x, replacement, _mm256_cmp_ps(x, x, _CMP_UNORD_Q)); }

  static float reduce_max(F x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
  }
  static float reduce_add(F x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
  }

  static U set1_u(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static U add_u(U a, U b) { return _mm256_add_epi32(a, b); }
  static U sub_u(U a, U b) { return _mm256_sub_epi32(a, b); }
  static U xor_u(U a, U b) { return _mm256_xor_si256(a, b); }
  template <int kBits>
  static U shift_right(U a) {
    return _mm256_srli_epi32(a, kBits);
  }
  template <int kBits>
  static U shift_right_signed(U a) {
    return _mm256_srai_epi32(a, kBits);
  }
  template <int kBits>
  static U shift_left(U a) {
    return _mm256_slli_epi32(a, kBits);
  }
  static F to_float(U a) { return _mm256_cvtepi32_ps(a); }  // of signed integers
  static F as_float(U a) { return _mm256_castsi256_ps(a); }
  static U as_bits(F a) { return _mm256_castps_si256(a); }
  static void mul_wide(U a, U b, U* high, U* low) {
    const __m256i even = _mm256_mul_epu32(a, b);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
    *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  }
  // Transposes the 4x4 blocks of lanes: lane 4g + i of x[j] goes to lane 4g + j of x[i].
  static void transpose4(U* x) {
    const __m256i a = _mm256_unpacklo_epi32(x[0], x[1]), b = _mm256_unpackhi_epi32(x[0], x[1]);
    const __m256i c = _mm256_unpacklo_epi32(x[2], x[3]), d = _mm256_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm256_unpacklo_epi64(a, c);
    x[1] = _mm256_unpackhi_epi64(a, c);
    x[2] = _mm256_unpacklo_epi64(b, d);
    x[3] = _mm256_unpackhi_epi64(b, d);
  }
  // Left to itself, g++ 12 takes a function that only prefetches for one without effect, and drops its calls.
  [[gnu::always_inline]] static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
};
