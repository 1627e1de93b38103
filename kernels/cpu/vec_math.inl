// exp, tanh, erf and the activations on a vector, from Vec's primitives. Coefficients: least squares at Chebyshev
// nodes, fitted for these ranges; the errors quoted are of the polynomial, before float rounding.

// exp(x): 2^n * exp(r) with |r| <= ln(2) / 2, relative error 4e-9. Exactly 0 below -87.7 (so masked scores vanish),
// infinity above 88.4, NaN stays.
static inline Vec::F exp_of(Vec::F x) {
  x = Vec::min(Vec::set1(88.8f), Vec::max(Vec::set1(-88.0f), x));
  const Vec::F n = Vec::round(Vec::mul(x, Vec::set1(1.44269504f)));
  Vec::F r = Vec::fma(n, Vec::set1(-0.693359375f), x);  // ln 2 in two parts, the first exact in a product with n
  r = Vec::fma(n, Vec::set1(2.12194440e-4f), r);
  Vec::F p = Vec::set1(1.37511503e-3f);
  p = Vec::fma(p, r, Vec::set1(8.36898723e-3f));
  p = Vec::fma(p, r, Vec::set1(4.16695443e-2f));
  p = Vec::fma(p, r, Vec::set1(1.66665179e-1f));
  p = Vec::fma(p, r, Vec::set1(4.99999885e-1f));
  p = Vec::fma(Vec::mul(r, r), p, r);
  return Vec::mul(Vec::add(p, Vec::set1(1.0f)), Vec::pow2(n));
}

// tanh(x): an odd polynomial (relative error 3e-10) where 1 - 2 / (exp(2x) + 1) would cancel.
static inline Vec::F tanh_of(Vec::F x) {
  const Vec::F z = Vec::mul(x, x);
  Vec::F p = Vec::set1(2.07081005e-3f);
  p = Vec::fma(p, z, Vec::set1(-8.09995918e-3f));
  p = Vec::fma(p, z, Vec::set1(2.16702552e-2f));
  p = Vec::fma(p, z, Vec::set1(-5.39412550e-2f));
  p = Vec::fma(p, z, Vec::set1(1.33331668e-1f));
  p = Vec::fma(p, z, Vec::set1(-3.33333299e-1f));
  const Vec::F small = Vec::fma(Vec::mul(p, z), x, x);
  const Vec::F e = exp_of(Vec::add(x, x));
  const Vec::F large = Vec::sub(Vec::set1(1.0f), Vec::div(Vec::set1(2.0f), Vec::add(e, Vec::set1(1.0f))));
  return Vec::if_less(Vec::abs(x), Vec::set1(0.625f), small, large);
}

// erfc(|x|) = t exp(-x^2 + P(t)), t = 1 / (1 + |x| / 2): relative error 9e-8.
static inline Vec::F erfc_of_abs(Vec::F x) {
  const Vec::F a = Vec::abs(x);
  const Vec::F t = Vec::div(Vec::set1(1.0f), Vec::fma(a, Vec::set1(0.5f), Vec::set1(1.0f)));
  Vec::F p = Vec::set1(1.79014198e-1f);
  p = Vec::fma(p, t, Vec::set1(-8.61461823e-1f));
  p = Vec::fma(p, t, Vec::set1(1.56874157f));
  p = Vec::fma(p, t, Vec::set1(-1.22522887f));
  p = Vec::fma(p, t, Vec::set1(3.39376729e-1f));
  p = Vec::fma(p, t, Vec::set1(-2.11165815e-1f));
  p = Vec::fma(p, t, Vec::set1(1.02911633e-1f));
  p = Vec::fma(p, t, Vec::set1(3.73245223e-1f));
  p = Vec::fma(p, t, Vec::set1(1.00008082f));
  p = Vec::fma(p, t, Vec::set1(-1.26551358f));
  return Vec::mul(t, exp_of(Vec::sub(p, Vec::mul(a, a))));
}

// x Phi(x) with Phi(x) = erfc(-x / sqrt 2) / 2.
static inline Vec::F gelu_of(Vec::F x) {
  const Vec::F tail = Vec::mul(Vec::set1(0.5f), erfc_of_abs(Vec::mul(x, Vec::set1(0.707106781f))));
  return Vec::mul(x, Vec::if_less(x, Vec::zero(), tail, Vec::sub(Vec::set1(1.0f), tail)));
}

static inline Vec::F gelu_tanh_of(Vec::F x) {
  const Vec::F cubic = Vec::fma(Vec::mul(Vec::mul(x, x), x), Vec::set1(0.044715f), x);
  const Vec::F half = Vec::mul(Vec::set1(0.5f), x);
  return Vec::fma(half, tanh_of(Vec::mul(cubic, Vec::set1(0.797884561f))), half);
}

// 2^x for x <= 0, to be rounded to 16 bits: relative error 4e-6. Exactly 0 below -127, NaN stays.
static inline Vec::F rough_exp2_of(Vec::F x) {
  x = Vec::max(Vec::set1(-127.0f), x);
  const Vec::F n = Vec::round(x), r = Vec::sub(x, n);
  Vec::F p = Vec::set1(9.56051021e-3f);
  p = Vec::fma(p, r, Vec::set1(5.59170392e-2f));
  p = Vec::fma(p, r, Vec::set1(2.40249811e-1f));
  p = Vec::fma(p, r, Vec::set1(6.93121968e-1f));
  p = Vec::fma(p, r, Vec::set1(9.99999191e-1f));
  return Vec::mul(p, Vec::pow2(n));
}

// The same for results that are rounded to 16 bits, where a rounding error is 5e-4 at least: relative error 2e-4 for
// |x| < 5, and of no more than 2e-8 beyond. Phi(-a) = exp(-a^2 / 2) P(a), with a power of two of its own and no
// quotient.
static inline Vec::F rough_gelu_of(Vec::F x) {
  const Vec::F a = Vec::abs(x), b = Vec::min(Vec::set1(5.0f), a);
  Vec::F p = Vec::set1(5.35353079e-6f);
  p = Vec::fma(p, b, Vec::set1(-1.36089962e-4f));
  p = Vec::fma(p, b, Vec::set1(1.50319733e-3f));
  p = Vec::fma(p, b, Vec::set1(-9.55656540e-3f));
  p = Vec::fma(p, b, Vec::set1(3.93194097e-2f));
  p = Vec::fma(p, b, Vec::set1(-1.12823569e-1f));
  p = Vec::fma(p, b, Vec::set1(2.40312480e-1f));
  p = Vec::fma(p, b, Vec::set1(-3.96976645e-1f));
  p = Vec::fma(p, b, Vec::set1(4.99926068e-1f));
  const Vec::F tail = Vec::mul(p, rough_exp2_of(Vec::mul(Vec::mul(a, a), Vec::set1(-0.721347520f))));
  return Vec::mul(x, Vec::if_less(x, Vec::zero(), tail, Vec::sub(Vec::set1(1.0f), tail)));
}

// kIsRough: the result is rounded to 16 bits.
template <Activation kActivation, bool kIsRough>
[[gnu::always_inline]] static inline Vec::F activate(Vec::F x) {
  if constexpr (kActivation == Activation::silu) {
    const Vec::F divisor = Vec::add(Vec::set1(1.0f), exp_of(Vec::sub(Vec::zero(), x)));
    return kIsRough ? Vec::divide_roughly(x, divisor) : Vec::div(x, divisor);
  } else if constexpr (kActivation == Activation::gelu) {
    return kIsRough ? rough_gelu_of(x) : gelu_of(x);
  } else if constexpr (kActivation == Activation::gelu_tanh) {
    return gelu_tanh_of(x);
  } else if constexpr (kActivation == Activation::relu) {
    return Vec::max(Vec::zero(), x);  // NaN stays
  } else if constexpr (kActivation == Activation::tanh) {
    return tanh_of(x);
  } else {
    return x;
  }
}

static inline Vec::F softcap_of(Vec::F x, float softcap) {
  return Vec::mul(Vec::set1(softcap), tanh_of(Vec::div(x, Vec::set1(softcap))));
}

// 0, 1, 2, ...
static inline Vec::F lane_ids() {
  alignas(64) float ids[Vec::kWidth];
  for (int i = 0; i < Vec::kWidth; ++i) ids[i] = static_cast<float>(i);
  return Vec::load(ids);
}

// Tail-aware access: n elements, n in [1, kWidth].
template <typename T>
static inline Vec::F load_up_to(const T* p, int64_t n) {
  return n >= Vec::kWidth ? Vec::load(p) : Vec::load_part(p, static_cast<int>(n));
}

template <typename T>
static inline void store_up_to(T* p, Vec::F x, int64_t n) {
  if (n >= Vec::kWidth) {
    Vec::store(p, x);
  } else {
    Vec::store_part(p, x, static_cast<int>(n));
  }
}
