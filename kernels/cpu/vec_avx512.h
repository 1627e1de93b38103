// Vec for AVX-512 F, BW, DQ, VL, VNNI and BF16: 16 floats in a register.
//
// Included inside the target region and namespace of backend_avx512.cpp, where the std and intrinsics headers already
// are; it is no header on its own. max(a, b) and min(a, b) give b when one of them is NaN, in every Vec.
struct Vec {
  static constexpr int kWidth = 16;
  static constexpr bool kDotBf16 = true;
  static constexpr int kGemmRows = 12;   // 24 accumulators + 2 of B + 1 of A
  static constexpr int kScoreRows = 6;   // rows x 4 key tiles of accumulators
  static constexpr int kScoreTiles = 4;  // key tiles at once
  static constexpr int kValueRows = 6;   // rows x kValueVecs accumulators
  static constexpr int kValueVecs = 4;
  using F = __m512;
  using U = __m512i;

  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load_part(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store_part(float* p, F x, int n) { _mm512_mask_storeu_ps(p, first(n), x); }

  static F widen_bf16(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
  // In integers, because VCVTNEPS2BF16 flushes denormals. A NaN keeps its sign and becomes quiet.
  static __m256i narrow_bf16(F x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, is_nan, quiet), 16));
  }
  static F load(const Bf16* p) { return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static F load_part(const Bf16* p, int n) { return widen_bf16(_mm256_maskz_loadu_epi16(first(n), p)); }
  static void store(Bf16* p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(x)); }
  static void store_part(Bf16* p, F x, int n) { _mm256_mask_storeu_epi16(p, first(n), narrow_bf16(x)); }
  // 32 elements, denormals flushed to zero.
  static void store_two(Bf16* p, F low, F high) { _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(high, low)); }

  static __m256i narrow_f16(F x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F load(const F16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static F load_part(const F16* p, int n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)); }
  static void store(F16* p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_f16(x)); }
  static void store_part(F16* p, F x, int n) { _mm256_mask_storeu_epi16(p, first(n), narrow_f16(x)); }
  template <typename T>
  static void store_two(T* p, F low, F high) {
    store(p, low);
    store(p + kWidth, high);
  }

  // 16 pairs: the first elements and the second elements.
  static void load_pairs(const Bf16* p, F* even, F* odd) {
    const __m512i pairs = _mm512_loadu_si512(p);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static U load_u(const void* p) { return _mm512_loadu_si512(p); }
  // acc += a.first * b.first + a.second * b.second
  static F dot(F acc, U a, U b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }

  // Sums of products of bytes: four a lane. Weights are made unsigned as they are loaded, kByteOffset too large.
  using I = __m512i;
  static constexpr int kByteOffset = 128;
  static I set1_i(int32_t x) { return _mm512_set1_epi32(x); }
  static U load_bytes(const int8_t* p) { return xor_u(load_u(p), set1_u(0x80808080u)); }
  static I dot_bytes(I acc, U weights, U a) { return _mm512_dpbusd_epi32(acc, weights, a); }
  static F byte_sums(I x) { return _mm512_cvtepi32_ps(x); }
  static void store_bytes(int8_t* p, F x) {  // whole numbers
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
  }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  // For a divisor >= 1 or infinite: relative error 6e-5.
  static F divide_roughly(F a, F b) { return _mm512_mul_ps(a, _mm512_rcp14_ps(b)); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F pow2(F n) {  // 2^n for whole n in [-127, 128]: 0 at -127, infinity at 128
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
  }
  static F abs(F x) { return _mm512_abs_ps(x); }
  // a < b ? x : y
  static F if_less(F a, F b, F x, F y) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x); }
  static bool any_at_least(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ) != 0; }
  static int count_at_least(F a, F b) { return __builtin_popcount(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ)); }
  static F nan_to(F x, F replacement) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x, replacement);
  }

  static float reduce_max(F x) { return _mm512_reduce_max_ps(x); }
  static float reduce_add(F x) { return _mm512_reduce_add_ps(x); }  // a fixed tree

  static U set1_u(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static U add_u(U a, U b) { return _mm512_add_epi32(a, b); }
  static U sub_u(U a, U b) { return _mm512_sub_epi32(a, b); }
  static U xor_u(U a, U b) { return _mm512_xor_si512(a, b); }
  template <int kBits>
  static U shift_right(U a) {
    return _mm512_srli_epi32(a, kBits);
  }
  template <int kBits>
  static U shift_right_signed(U a) {
    return _mm512_srai_epi32(a, kBits);
  }
  template <int kBits>
  static U shift_left(U a) {
    return _mm512_slli_epi32(a, kBits);
  }
  static F to_float(U a) { return _mm512_cvtepi32_ps(a); }  // of signed integers
  static F as_float(U a) { return _mm512_castsi512_ps(a); }
  static U as_bits(F a) { return _mm512_castps_si512(a); }
  static void mul_wide(U a, U b, U* high, U* low) {
    const __m512i even = _mm512_mul_epu32(a, b);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
    *high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
    *low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  }
  // Transposes the 4x4 blocks of lanes: lane 4g + i of x[j] goes to lane 4g + j of x[i].
  static void transpose4(U* x) {
    const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
    const __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi64(a, c);
    x[1] = _mm512_unpackhi_epi64(a, c);
    x[2] = _mm512_unpacklo_epi64(b, d);
    x[3] = _mm512_unpackhi_epi64(b, d);
  }
  // Left to itself, g++ 12 takes a function that only prefetches for one without effect, and drops its calls.
  [[gnu::always_inline]] static void prefetch(const void* p) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
  }
};
