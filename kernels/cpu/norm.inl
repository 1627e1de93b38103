// RMSNorm and LayerNorm of rows of the residual stream, or their bare gather and cast. A row is summed in kNormLanes
// vectors side by side, added in a fixed order; rows are independent. Limit: reading x and writing the result once.

constexpr int kNormLanes = 4;

// What is summed, as function objects: a lambda would not inherit the instruction set of this file. `left` is the
// number of elements from the vector's first on; lanes beyond it are 0 and must give 0.
struct Itself {
  Vec::F operator()(Vec::F x, int64_t) const { return x; }
};
struct Square {
  Vec::F operator()(Vec::F x, int64_t) const { return Vec::mul(x, x); }
};
struct SquaredDeviation {
  Vec::F mean;
  Vec::F lanes;  // 0, 1, 2, ...
  Vec::F operator()(Vec::F x, int64_t left) const {
    const Vec::F d = Vec::sub(x, mean);
    const Vec::F square = Vec::mul(d, d);
    if (left >= Vec::kWidth) return square;
    return Vec::if_less(lanes, Vec::set1(static_cast<float>(left)), square, Vec::zero());
  }
};

// Sum over term(x[i]) in an order that depends on n alone.
template <typename Term>
[[gnu::always_inline]] static inline float sum_terms(const float* x, int64_t n, const Term& term) {
  Vec::F sums[kNormLanes];
  for (Vec::F& sum : sums) sum = Vec::zero();
  int64_t i = 0;
  for (; i + kNormLanes * Vec::kWidth <= n; i += kNormLanes * Vec::kWidth) {
#pragma GCC unroll 4
    for (int j = 0; j < kNormLanes; ++j) {
      sums[j] = Vec::add(sums[j], term(Vec::load(x + i + j * Vec::kWidth), Vec::kWidth));
    }
  }
  for (; i < n; i += Vec::kWidth) sums[0] = Vec::add(sums[0], term(load_up_to(x + i, n - i), n - i));
  return Vec::reduce_add(Vec::add(Vec::add(sums[0], sums[1]), Vec::add(sums[2], sums[3])));
}

static inline float sum_of_squares(const float* x, int64_t n) { return sum_terms(x, n, Square{}); }

// out = (x - mean) * factor * weight + bias; without a norm (NormKind::none) out = x
template <typename T>
static void norm_row(const NormParams& p, const float* x, T* out) {
  const float inv_dim = 1.0f / static_cast<float>(p.dim);
  float mean = 0.0f;
  float square = 0.0f;
  if (p.kind == NormKind::layer) {
    mean = sum_terms(x, p.dim, Itself{}) * inv_dim;
    square = sum_terms(x, p.dim, SquaredDeviation{Vec::set1(mean), lane_ids()}) * inv_dim;
  } else if (p.kind == NormKind::rms) {
    square = sum_of_squares(x, p.dim) * inv_dim;
  }
  const bool has_norm = p.kind != NormKind::none;
  const Vec::F center = Vec::set1(mean);
  const Vec::F factor = Vec::set1(has_norm ? 1.0f / __builtin_sqrtf(square + p.eps) : 1.0f);
  for (int64_t i = 0; i < p.dim; i += Vec::kWidth) {
    const int64_t left = p.dim - i;
    Vec::F y = Vec::mul(Vec::sub(load_up_to(x + i, left), center), factor);
    if (has_norm && p.weight != nullptr) y = Vec::mul(y, load_up_to(p.weight + i, left));
    if (has_norm && p.bias != nullptr) y = Vec::add(y, load_up_to(p.bias + i, left));
    if constexpr (std::is_same_v<T, float>) {
      if (p.accumulate) y = Vec::add(load_up_to(out + i, left), y);
    }
    store_up_to(out + i, y, left);
  }
}

static void norm_rows(const NormParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* x = p.x + (p.row_ids != nullptr ? p.row_ids[row] : row) * p.x_stride;
    const int64_t offset = row * p.out_stride;
    switch (p.out_dtype) {
      case DType::bf16:
        norm_row(p, x, static_cast<Bf16*>(p.out) + offset);
        break;
      case DType::f16:
        norm_row(p, x, static_cast<F16*>(p.out) + offset);
        break;
      default:
        norm_row(p, x, static_cast<float*>(p.out) + offset);
    }
  }
}

static void norm(const NormParams& p, Stream stream) {
  QUIRE_CHECK(p.out_dtype == DType::f32 || p.out_dtype == DType::bf16 || p.out_dtype == DType::f16);
  QUIRE_CHECK(!p.accumulate || (p.out_dtype == DType::f32 && p.kind != NormKind::none));
  for_each_range(stream, p.rows, static_cast<double>(p.rows) * static_cast<double>(p.dim) * 0.2,
                 [&](int64_t begin, int64_t end) { norm_rows(p, begin, end); });
}
