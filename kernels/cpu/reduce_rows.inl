// Sums over ranks of rows, and their norm. A row at a time: what was summed is still in the cache when it is normed.

static inline void sum_row(const ReduceRowsParams& p, int64_t row) {
  for (int64_t i = 0; i < p.dim; i += Vec::kWidth) {
    const int64_t left = p.dim - i;
    const int64_t from = row * p.partial_stride + i, to = row * p.out_stride + i;
    Vec::F sum = load_up_to(p.partials[0] + from, left);
    for (int32_t rank = 1; rank < p.num_partials; ++rank)
      sum = Vec::add(sum, load_up_to(p.partials[rank] + from, left));
    if (p.base != nullptr) sum = Vec::add(load_up_to(p.base + to, left), sum);
    for (int32_t out = 0; out < p.num_outs; ++out) store_up_to(p.outs[out] + to, sum, left);
  }
}

static void reduce_some_rows(const ReduceRowsParams& p, int64_t begin, int64_t end) {
  NormParams norm;
  norm.kind = p.norm_kind;
  norm.x = p.outs[0];
  norm.x_stride = p.out_stride;
  norm.dim = p.dim;
  norm.weight = p.norm_weight;
  norm.bias = p.norm_bias;
  norm.eps = p.eps;
  norm.out_dtype = p.normed_dtype;
  norm.out_stride = p.normed_stride;
  for (int64_t row = begin; row < end; ++row) {
    sum_row(p, row);
    for (int32_t out = 0; p.has_norm && out < p.num_outs; ++out) {
      norm.out = p.normed[out];
      norm_rows(norm, row, row + 1);
    }
  }
}

static void reduce_rows(const ReduceRowsParams& p, Stream stream) {
  QUIRE_CHECK(p.num_partials >= 1 && p.num_partials <= kMaxRanks, "partials of ", p.num_partials, " ranks");
  QUIRE_CHECK(p.num_outs >= 1 && p.num_outs <= kMaxRanks, p.num_outs, " outputs");
  for_each_range(stream, p.rows,
                 static_cast<double>(p.rows) * static_cast<double>(p.dim) * 0.1 * (p.num_partials + p.num_outs),
                 [&](int64_t begin, int64_t end) { reduce_some_rows(p, begin, end); });
}
