// Means of runs of rows. Four running sums, of rows 0, 4, 8, ..., of rows 1, 5, 9, ... and so on, are added in a fixed
// order, so that the bits depend on the run alone. Limit: reading x once.

constexpr int kMeanSums = 4;

// The means of `count` columns (at most one vector) of rows [begin, end).
static inline Vec::F mean_of_columns(const float* x, int64_t stride, int64_t begin, int64_t end, int64_t count) {
  Vec::F sums[kMeanSums];
  for (Vec::F& sum : sums) sum = Vec::zero();
  int64_t row = begin;
  for (; row + kMeanSums <= end; row += kMeanSums) {
#pragma GCC unroll 4
    for (int j = 0; j < kMeanSums; ++j) sums[j] = Vec::add(sums[j], load_up_to(x + (row + j) * stride, count));
  }
  for (int j = 0; row + j < end; ++j) sums[j] = Vec::add(sums[j], load_up_to(x + (row + j) * stride, count));
  const Vec::F sum = Vec::add(Vec::add(sums[0], sums[1]), Vec::add(sums[2], sums[3]));
  return Vec::div(sum, Vec::set1(static_cast<float>(greater(1, end - begin))));
}

template <typename T>
static void mean_run(const MeanRowsParams& p, int64_t run) {
  T* out = static_cast<T*>(p.out) + run * p.out_stride;
  for (int64_t i = 0; i < p.dim; i += Vec::kWidth) {
    const int64_t left = p.dim - i;
    store_up_to(out + i, mean_of_columns(p.x + i, p.x_stride, p.row_start[run], p.row_start[run + 1], left), left);
  }
}

static void mean_runs(const MeanRowsParams& p, int64_t begin, int64_t end) {
  for (int64_t run = begin; run < end; ++run) {
    switch (p.out_dtype) {
      case DType::bf16:
        mean_run<Bf16>(p, run);
        break;
      case DType::f16:
        mean_run<F16>(p, run);
        break;
      default:
        mean_run<float>(p, run);
    }
  }
}

static void mean_rows(const MeanRowsParams& p, Stream stream) {
  if (p.num_runs <= 0) return;
  QUIRE_CHECK(p.out_dtype == DType::f32 || p.out_dtype == DType::bf16 || p.out_dtype == DType::f16);
  const double rows = static_cast<double>(p.row_start[p.num_runs] - p.row_start[0]);
  for_each_range(stream, p.num_runs, rows * static_cast<double>(p.dim) * 0.1,
                 [&](int64_t begin, int64_t end) { mean_runs(p, begin, end); });
}
