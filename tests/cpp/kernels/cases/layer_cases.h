// Cases of norm, embedding and rope_kv_write.
#pragma once

#include "kernels/cases/kernel_case.h"
#include "kernels/cases/kv_layout.h"

namespace quire::cases {

struct NormSpec {
  NormKind kind = NormKind::rms;
  DType out_dtype = DType::f32;
  int64_t rows = 3, dim = 16;
  bool has_weight = true, has_bias = false, has_row_ids = false, accumulate = false, in_place = false;
  int64_t padding = 3;  // elements between rows
};

class NormCase : public KernelCase {
 public:
  explicit NormCase(const NormSpec& spec)
      : spec_(spec),
        x_(DType::f32, num_source_rows() * stride()),
        original_(DType::f32, num_source_rows() * stride()),
        weight_(DType::f32, spec.dim),
        bias_(DType::f32, spec.dim),
        out_(spec.out_dtype, spec.rows * stride()) {
    Random random(static_cast<uint64_t>(spec.dim));
    original_.fill_uniform(random, 3.0);
    for (int64_t i = 0; i < original_.count(); ++i) original_.set(i, original_.get(i) + 0.5);
    weight_.fill_uniform(random, 2.0);
    bias_.fill_uniform(random, 1.0);
    for (int64_t r = 0; r < spec.rows; ++r) row_ids_.push_back(static_cast<int32_t>((r * 5 + 2) % num_source_rows()));
    bytes = static_cast<double>(spec.rows * spec.dim) * (4.0 + static_cast<double>(dtype_bytes(spec.out_dtype)));
    NormCase::reset();
  }

  void reset() override {
    std::memcpy(x_.data(), original_.data(), original_.size_bytes());
    out_.fill_untouched();
    for (int64_t r = 0; spec_.accumulate && r < spec_.rows; ++r) {
      for (int64_t i = 0; i < spec_.dim; ++i) out_.set(r * stride() + i, static_cast<double>(i % 5));
    }
  }

  void run(const KernelTable& table, Stream stream) override {
    NormParams p;
    p.kind = spec_.kind;
    p.x = x_.as<float>();
    p.x_stride = stride();
    p.row_ids = spec_.has_row_ids ? row_ids_.data() : nullptr;
    p.rows = spec_.rows;
    p.dim = spec_.dim;
    p.weight = spec_.has_weight ? weight_.as<float>() : nullptr;
    p.bias = spec_.has_bias ? bias_.as<float>() : nullptr;
    p.eps = kEps;
    p.out = spec_.in_place ? x_.data() : out_.data();
    p.out_dtype = spec_.out_dtype;
    p.out_stride = stride();
    p.accumulate = spec_.accumulate;
    table.norm(p, stream);
  }

  std::vector<const Buffer*> outputs() const override { return {&out_, &x_}; }

  std::string check() const override {
    std::vector<double> expected;
    for (int64_t r = 0; r < spec_.rows; ++r) reference_row(r, expected);
    const auto want = [&](int64_t r, int64_t i) { return expected[static_cast<size_t>(r * spec_.dim + i)]; };
    if (spec_.in_place) {
      for (int64_t r = 0; r < spec_.rows; ++r) {
        for (int64_t i = 0; i < spec_.dim; ++i) {
          if (!(std::abs(x_.get(r * stride() + i) - want(r, i)) <= 2e-5)) return str_cat("in place, row ", r, " ", i);
        }
      }
      return x_.guards_hold() ? "" : "wrote outside of x";
    }
    return compare_rows(out_, spec_.rows, spec_.dim, stride(), 2e-5, 1e-5 + rounding_of(spec_.out_dtype), want);
  }

 private:
  static constexpr float kEps = 1e-5f;
  int64_t num_source_rows() const { return spec_.rows + 76; }
  int64_t stride() const { return spec_.dim + spec_.padding; }

  void reference_row(int64_t r, std::vector<double>& expected) const {
    const int64_t from = (spec_.has_row_ids ? row_ids_[static_cast<size_t>(r)] : r) * stride();
    double mean = 0.0, square = 0.0;
    for (int64_t i = 0; i < spec_.dim; ++i) mean += original_.get(from + i) / static_cast<double>(spec_.dim);
    if (spec_.kind != NormKind::layer) mean = 0.0;
    for (int64_t i = 0; i < spec_.dim; ++i) square += std::pow(original_.get(from + i) - mean, 2);
    double factor = 1.0 / std::sqrt(square / static_cast<double>(spec_.dim) + kEps);
    if (spec_.kind == NormKind::none) factor = 1.0;
    for (int64_t i = 0; i < spec_.dim; ++i) {
      const double y = (original_.get(from + i) - mean) * factor * (spec_.has_weight ? weight_.get(i) : 1.0) +
                       (spec_.has_bias ? bias_.get(i) : 0.0);
      expected.push_back(spec_.accumulate ? static_cast<double>(i % 5) + y : y);
    }
  }

  NormSpec spec_;
  Buffer x_, original_, weight_, bias_, out_;
  std::vector<int32_t> row_ids_;
};

struct EmbeddingSpec {
  DType dtype = DType::f32;
  bool rounds_output = false;
  int64_t vocab_size = 77, dim = 37, num_tokens = 9;
  bool has_positions = false;
  float scale = 1.0f;
  int64_t part_begin = 0, part_rows = 0;  // > 0: the table has these rows alone
};

class EmbeddingCase : public KernelCase {
 public:
  EmbeddingCase(const EmbeddingSpec& spec, const KernelTable& table, Stream stream)
      : spec_(spec),
        source_(spec.dtype, spec.vocab_size * spec.dim),
        position_source_(spec.dtype, kMaxPositions * spec.dim),
        packed_(DType::u8, packed_bytes(table, spec.vocab_size)),
        packed_positions_(DType::u8, packed_bytes(table, kMaxPositions)),
        out_(spec.rounds_output ? spec.dtype : DType::f32, spec.num_tokens * (spec.dim + 1)) {
    Random random(7);
    source_.fill_uniform(random, 1.0);
    position_source_.fill_uniform(random, 1.0);
    for (int64_t t = 0; t < spec.num_tokens; ++t) {
      token_ids_.push_back(static_cast<int32_t>(t == 0 ? spec.vocab_size - 1 : random.below(spec.vocab_size)));
      positions_.push_back(static_cast<int32_t>(random.below(kMaxPositions - kPositionOffset)));
    }
    const int64_t part_rows = spec.part_rows > 0 ? spec.part_rows : spec.vocab_size;
    pack(table, stream, source_, spec.part_begin, part_rows, packed_);
    pack(table, stream, position_source_, 0, kMaxPositions, packed_positions_);
    bytes = static_cast<double>(spec.num_tokens * spec.dim) * (static_cast<double>(dtype_bytes(spec.dtype)) + 4.0);
  }

  void reset() override { out_.fill_untouched(); }

  void run(const KernelTable& table, Stream stream) override {
    EmbeddingParams p;
    p.token_ids = token_ids_.data();
    p.num_tokens = spec_.num_tokens;
    p.is_part = spec_.part_rows > 0;
    p.token_id_offset = static_cast<int32_t>(-spec_.part_begin);
    p.table = {packed_.data(), spec_.dtype, false, p.is_part ? spec_.part_rows : spec_.vocab_size, spec_.dim};
    if (spec_.has_positions) {
      p.positions = positions_.data();
      p.position_table = {packed_positions_.data(), spec_.dtype, false, kMaxPositions, spec_.dim};
      p.position_offset = kPositionOffset;
    }
    p.scale = spec_.scale;
    p.out = out_.data();
    p.out_dtype = spec_.rounds_output ? spec_.dtype : DType::f32;
    p.out_stride = spec_.dim + 1;
    table.embedding(p, stream);
  }

  std::vector<const Buffer*> outputs() const override { return {&out_}; }

  std::string check() const override {
    const double relative = 1e-6 + (spec_.rounds_output ? rounding_of(spec_.dtype) : 0.0);
    return compare_rows(out_, spec_.num_tokens, spec_.dim, spec_.dim + 1, 1e-6, relative, [&](int64_t t, int64_t i) {
      const auto at = static_cast<size_t>(t);
      const int64_t row = token_ids_[at] - spec_.part_begin;
      const bool is_there = spec_.part_rows == 0 || (row >= 0 && row < spec_.part_rows);
      const double token = is_there ? spec_.scale * source_.get(token_ids_[at] * spec_.dim + i) : 0.0;
      const int64_t position = positions_[at] + kPositionOffset;
      return spec_.has_positions ? token + position_source_.get(position * spec_.dim + i) : token;
    });
  }

 private:
  static constexpr int64_t kMaxPositions = 50;
  static constexpr int32_t kPositionOffset = 2;

  int64_t packed_bytes(const KernelTable& table, int64_t rows) const {
    return static_cast<int64_t>(table.packed_weight_bytes(rows, spec_.dim, spec_.dtype, false));
  }
  void pack(const KernelTable& table, Stream stream, const Buffer& source, int64_t begin, int64_t rows,
            Buffer& packed) {
    PackWeightParams p;
    p.source = static_cast<const std::byte*>(source.data()) +
               static_cast<size_t>(begin * spec_.dim) * dtype_bytes(spec_.dtype);
    p.source_dtype = spec_.dtype;
    p.rows = rows;
    p.cols = p.row_stride = spec_.dim;
    p.weight = {packed.data(), spec_.dtype, false, rows, spec_.dim};
    table.pack_weight(p, stream);
  }

  EmbeddingSpec spec_;
  Buffer source_, position_source_, packed_, packed_positions_, out_;
  std::vector<int32_t> token_ids_, positions_;
};

struct RopeSpec {
  DType dtype = DType::f32;
  int32_t num_heads = 3, num_kv_heads = 1, head_dim = 16, rotary_dim = 16, block_size = 16;
  int64_t num_tokens = 20;
  bool interleaved = false, has_norms = false;
  int64_t padding = 0;  // elements between tokens
};

class RopeCase : public KernelCase {
 public:
  RopeCase(const RopeSpec& spec, const KernelTable& table)
      : spec_(spec),
        layout_(layout_of(table)),
        qkv_(spec.dtype, spec.num_tokens * stride()),
        original_(spec.dtype, spec.num_tokens * stride()),
        q_norm_(DType::f32, spec.head_dim),
        k_norm_(DType::f32, spec.head_dim),
        cos_sin_(DType::f32, int64_t{kMaxPositions} * std::max(1, spec.rotary_dim)),
        k_cache_(spec.dtype, cache_elements()),
        v_cache_(spec.dtype, cache_elements()) {
    Random random(3);
    original_.fill_uniform(random, 2.0);
    q_norm_.fill_uniform(random, 1.5);
    k_norm_.fill_uniform(random, 1.5);
    for (int32_t p = 0; p < kMaxPositions; ++p) {
      for (int32_t i = 0; i < spec.rotary_dim / 2; ++i) {
        const double angle = p * std::pow(10000.0, -2.0 * i / spec.rotary_dim);
        cos_sin_.set(p * spec.rotary_dim + i, std::cos(angle));
        cos_sin_.set(p * spec.rotary_dim + spec.rotary_dim / 2 + i, std::sin(angle));
      }
    }
    for (int64_t t = 0; t < spec.num_tokens; ++t) {
      positions_.push_back(static_cast<int32_t>(random.below(kMaxPositions)));
      slots_.push_back(t % 7 == 3 ? -1 : static_cast<int32_t>((t * 3 + 1) % num_slots()));
    }
    bytes = static_cast<double>(dtype_bytes(spec.dtype)) * 2.0 * static_cast<double>(spec.num_tokens * stride());
    RopeCase::reset();
  }

  void reset() override {
    std::memcpy(qkv_.data(), original_.data(), original_.size_bytes());
    k_cache_.fill_untouched();
    v_cache_.fill_untouched();
  }

  void run(const KernelTable& table, Stream stream) override {
    RopeKvWriteParams p;
    p.qkv = qkv_.data();
    p.dtype = spec_.dtype;
    p.qkv_stride = stride();
    p.num_tokens = spec_.num_tokens;
    p.num_heads = spec_.num_heads;
    p.q_norm = spec_.has_norms ? q_norm_.as<float>() : nullptr;
    p.k_norm = spec_.has_norms ? k_norm_.as<float>() : nullptr;
    p.norm_eps = 1e-6f;
    p.positions = positions_.data();
    p.cos_sin = cos_sin_.as<float>();
    p.rotary_dim = spec_.rotary_dim;
    p.interleaved = spec_.interleaved;
    p.slot_mapping = slots_.data();
    p.kv = view();
    table.rope_kv_write(p, stream);
  }

  std::vector<const Buffer*> outputs() const override { return {&qkv_, &k_cache_, &v_cache_}; }

  std::string check() const override {
    if (!qkv_.guards_hold() || !k_cache_.guards_hold() || !v_cache_.guards_hold()) return "wrote outside";
    const double relative = 1e-5 + rounding_of(spec_.dtype);
    const auto is_near = [&](double got, double want) {
      return std::abs(got - want) <= 1e-5 + relative * std::abs(want);
    };
    std::vector<bool> written(static_cast<size_t>(num_slots()), false);
    for (int64_t t = 0; t < spec_.num_tokens; ++t) {
      for (int32_t h = 0; h < spec_.num_heads + 2 * spec_.num_kv_heads; ++h) {
        const std::vector<double> want = reference_head(t, h);
        for (int32_t d = 0; d < spec_.head_dim; ++d) {
          const int64_t at = t * stride() + int64_t{h} * spec_.head_dim + d;
          if (h < spec_.num_heads && !is_near(qkv_.get(at), want[static_cast<size_t>(d)])) {
            return str_cat("token ", t, " head ", h, " element ", d, ": ", qkv_.get(at), " instead of ",
                           want[size_t(d)]);
          }
          if (h >= spec_.num_heads && qkv_.get(at) != original_.get(at)) return "changed k or v of qkv";
          if (h >= spec_.num_heads && slots_[size_t(t)] >= 0 && !is_near(cached(t, h, d), want[size_t(d)])) {
            return str_cat("cache of token ", t, " head ", h, " element ", d, ": ", cached(t, h, d));
          }
        }
      }
      if (slots_[size_t(t)] >= 0) written[size_t(slots_[size_t(t)])] = true;
    }
    return check_unwritten(written);
  }

 private:
  static constexpr int32_t kMaxPositions = 90;
  static constexpr int64_t kNumBlocks = 7;
  int64_t num_slots() const { return kNumBlocks * spec_.block_size; }
  int64_t stride() const { return int64_t{spec_.num_heads + 2 * spec_.num_kv_heads} * spec_.head_dim + spec_.padding; }
  int64_t cache_elements() const { return num_slots() * spec_.num_kv_heads * spec_.head_dim; }
  KvCacheView view() {
    return {k_cache_.data(), v_cache_.data(), spec_.dtype, spec_.block_size, spec_.num_kv_heads, spec_.head_dim};
  }

  int64_t cache_index(int64_t slot, int32_t kv_head, int32_t d, bool is_key) const {
    const KvCacheView kv{nullptr, nullptr, spec_.dtype, spec_.block_size, spec_.num_kv_heads, spec_.head_dim};
    return kv_element(layout_, kv, slot, kv_head, d, is_key);
  }
  double cached(int64_t t, int32_t h, int32_t d) const {
    const int32_t kv_head = h - spec_.num_heads;
    if (kv_head < spec_.num_kv_heads) return k_cache_.get(cache_index(slots_[size_t(t)], kv_head, d, true));
    return v_cache_.get(cache_index(slots_[size_t(t)], kv_head - spec_.num_kv_heads, d, false));
  }
  std::string check_unwritten(const std::vector<bool>& written) const {
    for (int64_t slot = 0; slot < num_slots(); ++slot) {
      for (int32_t d = 0; d < spec_.head_dim && !written[size_t(slot)]; ++d) {
        if (!k_cache_.is_untouched(cache_index(slot, 0, d, true))) return str_cat("wrote k of slot ", slot);
        if (!v_cache_.is_untouched(cache_index(slot, 0, d, false))) return str_cat("wrote v of slot ", slot);
      }
    }
    return "";
  }

  std::vector<double> reference_head(int64_t t, int32_t h) const {
    std::vector<double> x(static_cast<size_t>(spec_.head_dim));
    for (int32_t d = 0; d < spec_.head_dim; ++d)
      x[size_t(d)] = original_.get(t * stride() + int64_t{h} * spec_.head_dim + d);
    if (h >= spec_.num_heads + spec_.num_kv_heads) return x;
    if (spec_.has_norms) {
      double square = 0.0;
      for (const double v : x) square += v * v / spec_.head_dim;
      const Buffer& weight = h < spec_.num_heads ? q_norm_ : k_norm_;
      for (int32_t d = 0; d < spec_.head_dim; ++d) x[size_t(d)] *= weight.get(d) / std::sqrt(square + 1e-6);
    }
    const int32_t half = spec_.rotary_dim / 2;
    for (int32_t i = 0; i < half; ++i) {
      const auto a = static_cast<size_t>(spec_.interleaved ? 2 * i : i);
      const auto b = static_cast<size_t>(spec_.interleaved ? 2 * i + 1 : i + half);
      const double c = cos_sin_.get(int64_t{positions_[size_t(t)]} * spec_.rotary_dim + i);
      const double s = cos_sin_.get(int64_t{positions_[size_t(t)]} * spec_.rotary_dim + half + i);
      const double first = x[a] * c - x[b] * s;
      x[b] = x[b] * c + x[a] * s;
      x[a] = first;
    }
    return x;
  }

  RopeSpec spec_;
  KvLayout layout_;
  Buffer qkv_, original_, q_norm_, k_norm_, cos_sin_, k_cache_, v_cache_;
  std::vector<int32_t> positions_, slots_;
};

template <typename Case, typename Spec>
void add_plain(std::vector<CaseEntry>& cases, const std::string& name, const Spec& spec, bool is_benchmark = false) {
  cases.push_back({name, is_benchmark, [spec](const KernelTable&, Stream) { return std::make_unique<Case>(spec); }});
}

inline void add_norm_cases(std::vector<CaseEntry>& cases) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const NormKind kind : {NormKind::rms, NormKind::layer}) {
      const char* kind_name = kind == NormKind::rms ? "rms" : "layer";
      for (const int64_t dim : {1, 7, 16, 37, 64, 100, 577, 1000}) {
        add_plain<NormCase>(
            cases, str_cat("norm_", kind_name, "_", dtype_name(dtype), "_", dim),
            NormSpec{.kind = kind, .out_dtype = dtype, .dim = dim, .has_bias = kind == NormKind::layer});
      }
      add_plain<NormCase>(
          cases, str_cat("norm_", kind_name, "_", dtype_name(dtype), "_rows"),
          NormSpec{.kind = kind, .out_dtype = dtype, .rows = 50, .dim = 96, .has_weight = false, .has_row_ids = true});
    }
  }
  for (const DType dtype : {DType::f32, DType::bf16}) {
    // Rows whose start allows wide loads, and enough of them for every way of sharing a row between threads.
    for (const int64_t dim : {4, 256, 1024, 1028, 4096, 12300}) {
      for (const NormKind kind : {NormKind::rms, NormKind::layer}) {
        add_plain<NormCase>(
            cases, str_cat("norm_", kind == NormKind::rms ? "rms_" : "layer_", dtype_name(dtype), "_wide_", dim),
            NormSpec{.kind = kind, .out_dtype = dtype, .dim = dim, .padding = 4});
      }
    }
    add_plain<NormCase>(cases, str_cat("norm_none_", dtype_name(dtype)),
                        NormSpec{.kind = NormKind::none,
                                 .out_dtype = dtype,
                                 .rows = 6,
                                 .dim = 1101,
                                 .has_weight = false,
                                 .has_row_ids = true});
  }
  add_plain<NormCase>(cases, "norm_add_wide", NormSpec{.rows = 4, .dim = 2048, .accumulate = true, .padding = 0});
  add_plain<NormCase>(cases, "norm_in_place_wide", NormSpec{.rows = 4, .dim = 9000, .in_place = true, .padding = 0});
  add_plain<NormCase>(cases, "norm_add", NormSpec{.rows = 4, .dim = 90, .accumulate = true});
  add_plain<NormCase>(cases, "norm_in_place", NormSpec{.rows = 4, .dim = 90, .in_place = true});
  add_plain<NormCase>(cases, "norm_rms_bench", NormSpec{.out_dtype = DType::bf16, .rows = 1024, .dim = 576}, true);
}

inline void add_embedding_cases(std::vector<CaseEntry>& cases) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const bool has_positions : {false, true}) {
      for (const bool rounds : {false, true}) {
        for (const int64_t dim : {37, 128, 300}) {
          const EmbeddingSpec spec = {.dtype = dtype,
                                      .rounds_output = rounds,
                                      .dim = dim,
                                      .has_positions = has_positions,
                                      .scale = rounds ? 6.0f : 1.0f};
          cases.push_back({str_cat("embedding_", dtype_name(dtype), has_positions ? "_positions" : "",
                                   rounds ? "_rounded" : "", "_", dim),
                           false, [spec](const KernelTable& table, Stream stream) {
                             return std::make_unique<EmbeddingCase>(spec, table, stream);
                           }});
        }
      }
    }
  }
}

// The table of one rank of several: tokens below, in and above it.
inline void add_embedding_part_cases(std::vector<CaseEntry>& cases) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const bool has_positions : {false, true}) {
      const EmbeddingSpec spec = {.dtype = dtype,
                                  .num_tokens = 40,
                                  .has_positions = has_positions,
                                  .scale = 3.0f,
                                  .part_begin = 25,
                                  .part_rows = 26};
      cases.push_back({str_cat("embedding_part_", dtype_name(dtype), has_positions ? "_positions" : ""), false,
                       [spec](const KernelTable& table, Stream stream) {
                         return std::make_unique<EmbeddingCase>(spec, table, stream);
                       }});
    }
  }
}

inline void add_rope_cases(std::vector<CaseEntry>& cases) {
  const auto add = [&](const std::string& name, const RopeSpec& spec) {
    cases.push_back(
        {name, false, [spec](const KernelTable& table, Stream) { return std::make_unique<RopeCase>(spec, table); }});
  };
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const bool interleaved : {false, true}) {
      for (const bool has_norms : {false, true}) {
        const std::string what =
            str_cat("rope_", dtype_name(dtype), interleaved ? "_interleaved" : "", has_norms ? "_norms" : "", "_");
        RopeSpec spec = {.dtype = dtype, .interleaved = interleaved, .has_norms = has_norms};
        add(what + "full", spec);
        spec.rotary_dim = 6;
        spec.num_kv_heads = 3;
        spec.head_dim = 21;
        add(what + "partial_odd", spec);
        spec.head_dim = 128;
        spec.rotary_dim = 128;
        spec.block_size = 48;
        add(what + "128", spec);
        spec.padding = 5;
        spec.num_tokens = 3;
        add(what + "128_unaligned", spec);
        spec.padding = 8;
        spec.head_dim = 80;
        spec.rotary_dim = 32;
        add(what + "80_partial", spec);
        spec.rotary_dim = 20;  // pairs that no wide load holds
        add(what + "80_partial20", spec);
        spec.padding = 6;  // tokens are aligned, heads are not
        spec.head_dim = 18;
        spec.rotary_dim = 16;
        add(what + "18_partial", spec);
        spec.padding = 8;
        spec.rotary_dim = 32;
        spec.head_dim = 576;
        add(what + "576_partial", spec);
        spec.head_dim = 128;
        spec.num_tokens = 20;
        spec.rotary_dim = 0;
        add(what + "none", spec);
      }
    }
  }
}

}  // namespace quire::cases
