// Vec in GCC and Clang vector extensions: 4 floats, which is a register of SSE2 and of NEON.
//
// Included inside the namespace of backend_portable.cpp; it is no header on its own. No fused multiply-add, so that the
// bits are the same on every machine. max(a, b) and min(a, b) give b when one of them is NaN, in every Vec.
struct Vec {
  static constexpr int kWidth = 4;
  static constexpr bool kDotBf16 = false;
  static constexpr int kGemmRows = 1;  // 8 accumulators: 16 registers is what SSE2 has
  static constexpr int kScoreRows = 2;
  static constexpr int kScoreTiles = 1;
  static constexpr int kValueRows = 2;
  static constexpr int kValueVecs = 4;
  typedef float F __attribute__((vector_size(16)));
  typedef uint32_t U __attribute__((vector_size(16)));
  typedef int32_t S __attribute__((vector_size(16)));

  static F zero() { return F{}; }
  static F set1(float x) { return F{x, x, x, x}; }
  static F load(const float* p) { return load_as<F>(p); }
  static F load_part(const float* p, int n) {
    F x{};
    memcpy(&x, p, static_cast<size_t>(n) * sizeof(float));
    return x;
  }
  static void store(float* p, F x) { memcpy(p, &x, sizeof(x)); }
  static void store_part(float* p, F x, int n) { memcpy(p, &x, static_cast<size_t>(n) * sizeof(float)); }

  static F load(const Bf16* p) {
    const U bits = {p[0].bits, p[1].bits, p[2].bits, p[3].bits};
    return (F)(bits << 16);
  }
  static F load(const F16* p) {
    return F{f16_to_float(p[0].bits), f16_to_float(p[1].bits), f16_to_float(p[2].bits), f16_to_float(p[3].bits)};
  }
  template <typename T>
  static F load_part(const T* p, int n) {
    F x{};
    for (int i = 0; i < n; ++i) x[i] = cpu::to_float(p[i]);
    return x;
  }
  template <typename T>
  static void store(T* p, F x) {
    store_part(p, x, kWidth);
  }
  template <typename T>
  static void store_part(T* p, F x, int n) {
    for (int i = 0; i < n; ++i) cpu::from_float(x[i], p + i);
  }

  static void load_pairs(const Bf16* p, F* even, F* odd) {
    U pairs;
    memcpy(&pairs, p, sizeof(pairs));
    *even = (F)(pairs << 16);
    *odd = (F)(pairs & 0xffff0000u);
  }

  // acc += a.first * b.first, then += a.second * b.second
  static F dot(F acc, U a, U b) {
    return fma((F)(a & 0xffff0000u), (F)(b & 0xffff0000u), fma((F)(a << 16), (F)(b << 16), acc));
  }

  template <typename T>
  static void store_two(T* p, F low, F high) {
    store(p, low);
    store(p + kWidth, high);
  }

  // Sums of products of bytes: four a lane. In floats, which are exact as far as these sums go and which every machine
  // multiplies.
  using I = F;
  static constexpr int kByteOffset = 0;
  static I set1_i(int32_t x) { return set1(static_cast<float>(x)); }
  template <int kByte>
  static F byte_of(U x) {
    return __builtin_convertvector((S)(x << (24 - 8 * kByte)) >> 24, F);
  }
  static U load_bytes(const int8_t* p) { return load_u(p); }
  static I dot_bytes(I acc, U w, U a) {
    acc = acc + byte_of<0>(w) * byte_of<0>(a);
    acc = acc + byte_of<1>(w) * byte_of<1>(a);
    acc = acc + byte_of<2>(w) * byte_of<2>(a);
    return acc + byte_of<3>(w) * byte_of<3>(a);
  }
  static F byte_sums(I x) { return x; }
  static void store_bytes(int8_t* p, F x) {  // whole numbers
    for (int i = 0; i < kWidth; ++i) p[i] = static_cast<int8_t>(x[i]);
  }

  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F divide_roughly(F a, F b) { return div(a, b); }
  static F max(F a, F b) { return a > b ? a : b; }
  static F min(F a, F b) { return a < b ? a : b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F round(F x) { return (x + set1(0x1.8p23f)) - set1(0x1.8p23f); }  // |x| < 2^22
  static F pow2(F n) {  // 2^n for whole n in [-127, 128]: 0 at -127, infinity at 128; NaN gives anything
    const F clean = nan_to(n, zero());
    return (F)((__builtin_convertvector(clean, S) + 127) << 23);
  }
  static F abs(F x) { return (F)((U)x & 0x7fffffffu); }
  // a < b ? x : y
  static F if_less(F a, F b, F x, F y) { return a < b ? x : y; }
  static int count_at_least(F a, F b) {
    int count = 0;
    for (int i = 0; i < kWidth; ++i) count += a[i] >= b[i];
    return count;
  }
  static bool any_at_least(F a, F b) { return count_at_least(a, b) != 0; }
  static F nan_to(F x, F replacement) { return x == x ? x : replacement; }

  static float reduce_max(F x) {
    const float a = x[0] > x[2] ? x[0] : x[2];
    const float b = x[1] > x[3] ? x[1] : x[3];
    return a > b ? a : b;
  }
  static float reduce_add(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }

  static U load_u(const void* p) { return load_as<U>(p); }
  static U set1_u(uint32_t x) { return U{x, x, x, x}; }
  static U add_u(U a, U b) { return a + b; }
  static U sub_u(U a, U b) { return a - b; }
  static U xor_u(U a, U b) { return a ^ b; }
  template <int kBits>
  static U shift_right(U a) {
    return a >> kBits;
  }
  template <int kBits>
  static U shift_right_signed(U a) {
    return (U)((S)a >> kBits);
  }
  template <int kBits>
  static U shift_left(U a) {
    return a << kBits;
  }
  static F to_float(U a) { return __builtin_convertvector((S)a, F); }  // of signed integers
  static F as_float(U a) { return (F)a; }
  static U as_bits(F a) { return (U)a; }
  static void mul_wide(U a, U b, U* high, U* low) {
    for (int i = 0; i < kWidth; ++i) {
      const uint64_t product = static_cast<uint64_t>(a[i]) * b[i];
      (*high)[i] = static_cast<uint32_t>(product >> 32);
      (*low)[i] = static_cast<uint32_t>(product);
    }
  }
  // Lane i of x[j] goes to lane j of x[i].
  static void transpose4(U* x) {
    const U a = x[0], b = x[1], c = x[2], d = x[3];
    for (int i = 0; i < 4; ++i) x[i] = U{a[i], b[i], c[i], d[i]};
  }
  static void prefetch(const void* p) { __builtin_prefetch(p); }

 private:
  template <typename T>
  static T load_as(const void* p) {
    T x;
    memcpy(&x, p, sizeof(x));
    return x;
  }
};
