// Rows of the packed token table (and of the position table). A row is a column of a panel, so its elements lie 32 (or
// 32 pairs) apart: one cache line each, which is paid for having no second copy of a tied table.

// out[i] = element k_begin + i of row `row`, as float.
template <typename T>
static void gather_row(const PackedWeight& table, int64_t row, int64_t k_begin, int64_t count, float* out) {
  const T* panel = static_cast<const T*>(table.data) + row / kPanelColumns * panel_elements(table.cols, table.dtype);
  for (int64_t i = 0; i < count; ++i) {
    out[i] = cpu::to_float(panel[panel_offset(k_begin + i, row % kPanelColumns, table.dtype)]);
  }
}

template <typename T>
static void embed_token(const EmbeddingParams& p, int64_t t) {
  constexpr int64_t kRun = 128;
  alignas(64) float token[kRun + Vec::kWidth];
  alignas(64) float position[kRun + Vec::kWidth];
  const Vec::F scale = Vec::set1(p.scale);
  const int64_t row = static_cast<int64_t>(p.token_ids[t]) + p.token_id_offset;
  const bool is_elsewhere = p.is_part && (row < 0 || row >= p.table.rows);
  for (int64_t k = 0; k < p.table.cols; k += kRun) {
    const int64_t count = lesser(kRun, p.table.cols - k);
    if (is_elsewhere) {
      for (int64_t i = 0; i < count; ++i) token[i] = 0.0f;
    } else {
      gather_row<T>(p.table, row, k, count, token);
    }
    if (p.position_table.data != nullptr) {
      gather_row<T>(p.position_table, p.positions[t] + p.position_offset, k, count, position);
    }
    for (int64_t i = 0; i < count; i += Vec::kWidth) {
      Vec::F x = Vec::mul(Vec::load(token + i), scale);
      if (p.position_table.data != nullptr) x = Vec::add(x, Vec::load(position + i));
      const int64_t offset = t * p.out_stride + k + i;
      if (p.out_dtype == DType::f32) {
        float* out = static_cast<float*>(p.out) + offset;
        if (p.accumulate) x = Vec::add(load_up_to(out, count - i), x);
        store_up_to(out, x, count - i);
      } else {
        store_up_to(static_cast<T*>(p.out) + offset, x, count - i);
      }
    }
  }
}

static void embed_tokens(const EmbeddingParams& p, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    switch (p.table.dtype) {
      case DType::bf16:
        embed_token<Bf16>(p, t);
        break;
      case DType::f16:
        embed_token<F16>(p, t);
        break;
      default:
        embed_token<float>(p, t);
    }
  }
}

static void embedding(const EmbeddingParams& p, Stream stream) {
  QUIRE_CHECK(p.out_dtype == DType::f32 || p.out_dtype == p.table.dtype);
  QUIRE_CHECK(!p.accumulate || p.out_dtype == DType::f32);
  QUIRE_CHECK(!p.table.gated);
  QUIRE_CHECK(p.position_table.data == nullptr ||
              (p.position_table.dtype == p.table.dtype && p.position_table.cols == p.table.cols));
  for_each_range(stream, p.num_tokens, static_cast<double>(p.num_tokens) * static_cast<double>(p.table.cols) * 2.0,
                 [&](int64_t begin, int64_t end) { embed_tokens(p, begin, end); });
}
