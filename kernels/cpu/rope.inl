// One pass over the output of the QKV projection: head norms, rotation, and the write of K and V into their pages.
// A head is brought into a float buffer, normed and rotated there, and rounded once on the way out.

// Head `source` as float, normed when `weight` is given.
template <typename T>
static void load_head(const RopeKvWriteParams& p, const T* source, const float* weight, float* head) {
  const int64_t n = p.kv.head_dim;
  for (int64_t i = 0; i < n; i += Vec::kWidth) Vec::store(head + i, load_up_to(source + i, n - i));
  if (weight == nullptr) return;
  const float square = sum_of_squares(head, n) / static_cast<float>(n);
  const Vec::F factor = Vec::set1(1.0f / __builtin_sqrtf(square + p.norm_eps));
  for (int64_t i = 0; i < n; i += Vec::kWidth) {
    Vec::store(head + i, Vec::mul(Vec::mul(Vec::load(head + i), factor), load_up_to(weight + i, n - i)));
  }
}

// Rotates the first rotary_dim elements: pairs (i, i + half), or (2i, 2i + 1) when interleaved.
static void rotate_head(const RopeKvWriteParams& p, const float* cosines, float* head) {
  const int64_t half = p.rotary_dim / 2;
  const float* sines = cosines + half;
  if (p.interleaved) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = head[2 * i], b = head[2 * i + 1];
      head[2 * i] = a * cosines[i] - b * sines[i];
      head[2 * i + 1] = b * cosines[i] + a * sines[i];
    }
    return;
  }
  for (int64_t i = 0; i < half; i += Vec::kWidth) {
    const int64_t left = half - i;
    const Vec::F c = load_up_to(cosines + i, left), s = load_up_to(sines + i, left);
    const Vec::F a = load_up_to(head + i, left), b = load_up_to(head + half + i, left);
    store_up_to(head + i, Vec::sub(Vec::mul(a, c), Vec::mul(b, s)), left);
    store_up_to(head + half + i, Vec::add(Vec::mul(b, c), Vec::mul(a, s)), left);
  }
}

// Scatters a key into lane `lane` of its transposed tile; a pair of bf16 moves as one word.
template <typename T>
static void write_key(const T* key, int64_t head_dim, int64_t lane, DType dtype, T* tile) {
  int64_t d = 0;
  if constexpr (std::is_same_v<T, Bf16>) {
    for (; d + 2 <= head_dim; d += 2) memcpy(tile + d * kTileTokens + 2 * lane, key + d, 2 * sizeof(T));
  }
  for (; d < head_dim; ++d) tile[key_offset(d, lane, head_dim, dtype)] = key[d];
}

template <typename T>
static void rope_kv_write_token(const RopeKvWriteParams& p, int64_t t) {
  alignas(64) float head[kMaxHeadDim + Vec::kWidth];
  alignas(64) T rotated[kMaxHeadDim + Vec::kWidth];
  const int64_t head_dim = p.kv.head_dim;
  const float* cosines = p.rotary_dim > 0 ? p.cos_sin + int64_t{p.positions[t]} * p.rotary_dim : nullptr;
  T* row = static_cast<T*>(p.qkv) + t * p.qkv_stride;
  for (int64_t h = 0; h < p.num_heads && (cosines != nullptr || p.q_norm != nullptr); ++h) {
    T* query = row + h * head_dim;
    load_head(p, query, p.q_norm, head);
    if (cosines != nullptr) rotate_head(p, cosines, head);
    for (int64_t i = 0; i < head_dim; i += Vec::kWidth) store_up_to(query + i, Vec::load(head + i), head_dim - i);
  }
  const int64_t slot = p.slot_mapping[t];
  if (slot < 0) return;
  const int64_t block_id = slot / p.kv.block_size, offset = slot % p.kv.block_size;
  const int64_t lane = offset % kTileTokens;
  const T* keys = row + p.num_heads * head_dim;
  const T* values = keys + p.kv.num_kv_heads * head_dim;
  for (int64_t h = 0; h < p.kv.num_kv_heads; ++h) {
    const int64_t tile = tile_offset(p.kv, block_id, h, offset - lane);
    const T* key = keys + h * head_dim;
    if (cosines != nullptr || p.k_norm != nullptr) {
      load_head(p, key, p.k_norm, head);
      if (cosines != nullptr) rotate_head(p, cosines, head);
      for (int64_t i = 0; i < head_dim; i += Vec::kWidth) Vec::store(rotated + i, Vec::load(head + i));
      key = rotated;
    }
    write_key(key, head_dim, lane, p.kv.dtype, static_cast<T*>(p.kv.k) + tile);
    memcpy(static_cast<T*>(p.kv.v) + tile + lane * head_dim, values + h * head_dim,
           static_cast<size_t>(head_dim) * sizeof(T));
  }
}

static void rope_kv_write_tokens(const RopeKvWriteParams& p, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    switch (p.dtype) {
      case DType::bf16:
        rope_kv_write_token<Bf16>(p, t);
        break;
      case DType::f16:
        rope_kv_write_token<F16>(p, t);
        break;
      default:
        rope_kv_write_token<float>(p, t);
    }
  }
}

static void rope_kv_write(const RopeKvWriteParams& p, Stream stream) {
  QUIRE_CHECK(p.dtype == p.kv.dtype, "a cache of another type than the model is not supported");
  QUIRE_CHECK(p.kv.block_size % kTileTokens == 0, "block_size ", p.kv.block_size);
  QUIRE_CHECK(p.kv.head_dim <= kMaxHeadDim, "head_dim ", p.kv.head_dim, " > ", kMaxHeadDim);
  QUIRE_CHECK(p.rotary_dim % 2 == 0 && p.rotary_dim <= p.kv.head_dim, "rotary_dim ", p.rotary_dim);
  const double elements = static_cast<double>(p.num_heads + 2 * p.kv.num_kv_heads) * p.kv.head_dim;
  for_each_range(stream, p.num_tokens, static_cast<double>(p.num_tokens) * elements * 0.5,
                 [&](int64_t begin, int64_t end) { rope_kv_write_tokens(p, begin, end); });
}
