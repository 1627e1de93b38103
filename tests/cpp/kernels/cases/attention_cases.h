// Cases of paged_attention: ragged batches, every option, head sizes good and odd, pages placed at random.
//
// Keys and values go in through the table's own rope_kv_write, so a case knows no layout. Slots past kv_lens hold NaN,
// block table entries that no query may use hold an id far outside of the cache.
#pragma once

#include <algorithm>

#include "kernels/cases/kernel_case.h"

namespace quire::cases {

struct SequenceSpec {
  int32_t num_queries = 1;
  int32_t kv_len = 1;
  int32_t shares_with = -1, shared_keys = 0;  // whole pages of these keys are those of an earlier sequence
};

struct AttentionSpec {
  DType dtype = DType::f32;
  int32_t num_heads = 1, num_kv_heads = 1, head_dim = 8, block_size = 16;
  std::vector<SequenceSpec> seqs;
  float softcap = 0.0f;
  int32_t window = 0;
  bool has_alibi = false, has_sinks = false, causal = true;
  int32_t relative_reach = -1;  // >= 0: there is a relative bias
};

constexpr int32_t kUnusedBlock = 2147480000;

// Fills queries and the rows of q, k, v of all keys; given the elements from row to row.
using FillInputs = std::function<void(Buffer& queries, int64_t q_stride, Buffer& kv, int64_t kv_stride)>;

class AttentionCase : public KernelCase {
 public:
  // `seed` places the pages, and makes the inputs unless `fill` does.
  AttentionCase(const AttentionSpec& spec, const KernelTable& table, Stream stream, uint64_t seed = 1,
                const FillInputs& fill = {})
      : spec_(spec), head_dim_(spec.head_dim) {
    Random random(seed);
    for (const SequenceSpec& seq : spec.seqs) {
      query_start_.push_back(num_tokens_);
      kv_start_.push_back(num_keys_);
      kv_lens_.push_back(seq.kv_len);
      num_tokens_ += seq.num_queries;
      num_keys_ += seq.kv_len;
      max_kv_len_ = std::max(max_kv_len_, seq.kv_len);
    }
    query_start_.push_back(num_tokens_);
    q_stride_ = int64_t{spec.num_heads} * head_dim_ + 4;
    q_ = Buffer(spec.dtype, num_tokens_ * q_stride_);
    out_ = Buffer(spec.dtype, num_tokens_ * q_stride_);
    q_.fill_uniform(random, kMaxValue);
    kv_stride_ = int64_t{spec.num_heads + 2 * spec.num_kv_heads} * head_dim_;
    qkv_ = Buffer(spec.dtype, num_keys_ * kv_stride_);
    qkv_.fill_uniform(random, kMaxValue);
    if (fill) fill(q_, q_stride_, qkv_, kv_stride_);
    slopes_ = Buffer(DType::f32, spec.num_heads);
    sinks_ = Buffer(DType::f32, spec.num_heads);
    for (int32_t h = 0; h < spec.num_heads; ++h) {
      slopes_.set(h, 0.3 - 0.1 * (h % 5));
      sinks_.set(h, 1.5 * (h % 3) - 1.0);
    }
    if (spec.relative_reach >= 0) {
      relative_bias_ = Buffer(DType::f32, spec.num_heads * (2 * int64_t{spec.relative_reach} + 1));
      Random of_distances(17);  // of no seed: they are the model's, not the batch's
      relative_bias_.fill_uniform(of_distances, kMaxValue);
    }
    share_keys();
    place_pages(random);
    write_cache(table, stream);
    hide_unused_blocks();
    plan_ = Buffer(DType::u8, static_cast<int64_t>(table.attention_plan_bytes(
                                  num_tokens_, static_cast<int64_t>(spec.seqs.size()), spec.num_heads)));
    workspace_ =
        Buffer(DType::u8,
               static_cast<int64_t>(table.attention_workspace_bytes(num_tokens_, static_cast<int64_t>(spec.seqs.size()),
                                                                    max_kv_len_, spec.num_heads, head_dim_, 3)));
    // Tensor cores and AMX tiles take the weights of the values, at most 1 in sum, in the type of the cache.
    const std::string name = table.name;
    if (name == "cuda" || name == "simt" || (name == "amx" && spec.dtype == DType::bf16))
      weight_rounding_ = kMaxValue * rounding_of(spec.dtype) / 2;
    count_work();
  }

  // What an earlier launch left in the workspace or the plan may help no later one.
  void reset() override {
    out_.fill_untouched();
    workspace_.fill_untouched();
    plan_.fill_untouched();
  }
  const Buffer& out() const { return out_; }
  int64_t row_stride() const { return q_stride_; }

  void run(const KernelTable& table, Stream stream) override {
    PagedAttentionParams p;
    p.q = q_.data();
    p.q_stride = q_stride_;
    p.dtype = spec_.dtype;
    p.num_heads = spec_.num_heads;
    p.kv = view();
    p.num_seqs = static_cast<int32_t>(spec_.seqs.size());
    p.query_start = query_start_.data();
    p.kv_lens = kv_lens_.data();
    p.block_tables = block_tables_.data();
    p.block_table_stride = table_stride_;
    p.scale = scale();
    p.softcap = spec_.softcap;
    p.window = spec_.window;
    p.alibi_slopes = spec_.has_alibi ? slopes_.as<float>() : nullptr;
    if (spec_.relative_reach >= 0) {
      p.relative_bias = relative_bias_.as<float>();
      p.relative_reach = spec_.relative_reach;
    }
    p.sinks = spec_.has_sinks ? sinks_.as<float>() : nullptr;
    p.causal = spec_.causal;
    p.out = out_.data();
    p.out_stride = q_stride_;
    p.workspace = workspace_.data();
    p.workspace_bytes = workspace_.size_bytes();
    p.num_tokens = num_tokens_;
    p.max_kv_len = max_kv_len_;
    if (plan_.count() > 0) {
      p.plan = plan_.data();
      p.plan_bytes = plan_.size_bytes();
      table.plan_attention(p, stream);
    }
    table.paged_attention(p, stream);
  }

  std::vector<const Buffer*> outputs() const override { return {&out_}; }

  std::string check() const override {
    if (!workspace_.guards_hold()) return "wrote outside of the workspace";
    if (!plan_.guards_hold()) return "wrote outside of the plan";
    std::string problem;
    std::vector<double> expected(static_cast<size_t>(num_tokens_ * spec_.num_heads * head_dim_));
    for (size_t s = 0; s < spec_.seqs.size(); ++s) {
      for (int32_t i = 0; i < spec_.seqs[s].num_queries; ++i) {
        for (int32_t h = 0; h < spec_.num_heads; ++h) reference(s, i, h, expected);
      }
    }
    const int64_t row_length = int64_t{spec_.num_heads} * head_dim_;
    const double relative = 2e-5 + rounding_of(spec_.dtype);
    return compare_rows(
        out_, num_tokens_, row_length, q_stride_, 3e-5 + weight_rounding_, relative,
        [&](int64_t row, int64_t column) { return expected[static_cast<size_t>(row * row_length + column)]; });
  }

 private:
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(head_dim_)); }

  KvCacheView view() {
    return {k_cache_.data(), v_cache_.data(), spec_.dtype, spec_.block_size, spec_.num_kv_heads, head_dim_};
  }

  void share_keys() {
    for (size_t s = 0; s < spec_.seqs.size(); ++s) {
      const SequenceSpec& seq = spec_.seqs[s];
      const int64_t whole = seq.shared_keys / spec_.block_size * spec_.block_size * kv_stride_;
      for (int64_t i = 0; i < whole; ++i) {
        qkv_.set(kv_start_[s] * kv_stride_ + i,
                 qkv_.get(kv_start_[static_cast<size_t>(seq.shares_with)] * kv_stride_ + i));
      }
    }
  }

  void place_pages(Random& random) {
    int32_t num_blocks = 3;
    table_stride_ = max_kv_len_ / spec_.block_size + 3;
    for (const SequenceSpec& seq : spec_.seqs) num_blocks += (seq.kv_len + spec_.block_size - 1) / spec_.block_size;
    std::vector<int32_t> ids(static_cast<size_t>(num_blocks));
    for (int32_t i = 0; i < num_blocks; ++i) ids[static_cast<size_t>(i)] = i;
    for (size_t i = ids.size(); i > 1; --i) std::swap(ids[i - 1], ids[static_cast<size_t>(random.below(int64_t(i)))]);
    block_tables_.assign(spec_.seqs.size() * static_cast<size_t>(table_stride_), kUnusedBlock);
    size_t next = 0;
    for (size_t s = 0; s < spec_.seqs.size(); ++s) {
      for (int32_t b = 0; b * spec_.block_size < spec_.seqs[s].kv_len; ++b) {
        const bool is_shared = (b + 1) * spec_.block_size <= spec_.seqs[s].shared_keys;
        block_of(s, b) = is_shared ? block_of(static_cast<size_t>(spec_.seqs[s].shares_with), b) : ids[next++];
      }
    }
    const int64_t elements = int64_t{num_blocks} * spec_.block_size * spec_.num_kv_heads * head_dim_;
    k_cache_ = Buffer(spec_.dtype, elements);  // all NaN
    v_cache_ = Buffer(spec_.dtype, elements);
  }

  int32_t& block_of(size_t seq, int32_t block) {
    return block_tables_[seq * static_cast<size_t>(table_stride_) + static_cast<size_t>(block)];
  }

  void write_cache(const KernelTable& table, Stream stream) {
    std::vector<int32_t> positions, slots;
    for (size_t s = 0; s < spec_.seqs.size(); ++s) {
      for (int32_t i = 0; i < spec_.seqs[s].kv_len; ++i) {
        positions.push_back(i);
        slots.push_back(block_of(s, i / spec_.block_size) * spec_.block_size + i % spec_.block_size);
      }
    }
    RopeKvWriteParams p;
    p.qkv = qkv_.data();
    p.dtype = spec_.dtype;
    p.qkv_stride = kv_stride_;
    p.num_tokens = num_keys_;
    p.num_heads = spec_.num_heads;
    p.positions = positions.data();
    p.slot_mapping = slots.data();
    p.kv = view();
    table.rope_kv_write(p, stream);
  }

  // Pages before every window are given back in a running engine; their entries mean nothing.
  void hide_unused_blocks() {
    for (size_t s = 0; s < spec_.seqs.size() && spec_.window > 0; ++s) {
      const int32_t first_seen = spec_.seqs[s].kv_len - spec_.seqs[s].num_queries + 1 - spec_.window;
      for (int32_t b = 0; (b + 1) * spec_.block_size <= first_seen; ++b) block_of(s, b) = kUnusedBlock;
    }
  }

  static int32_t position_of(const SequenceSpec& seq, int32_t i) { return seq.kv_len - seq.num_queries + i; }

  // The keys [first, second) that query i of the sequence sees.
  std::pair<int32_t, int32_t> visible(const SequenceSpec& seq, int32_t i) const {
    const int32_t position = position_of(seq, i);
    const int32_t begin = spec_.window > 0 ? std::max(0, position - spec_.window + 1) : 0;
    const int32_t ahead = spec_.causal ? 1 : spec_.window > 0 ? spec_.window : seq.kv_len;
    return {begin, std::min(seq.kv_len, position + ahead)};
  }

  void count_work() {
    const double element = static_cast<double>(dtype_bytes(spec_.dtype));
    bytes = element * (2.0 * static_cast<double>(num_tokens_) * spec_.num_heads * head_dim_ +
                       2.0 * static_cast<double>(num_keys_) * spec_.num_kv_heads * head_dim_);
    for (const SequenceSpec& seq : spec_.seqs) {
      for (int32_t i = 0; i < seq.num_queries; ++i) {
        const auto [begin, end] = visible(seq, i);
        flops += 4.0 * (end - begin) * spec_.num_heads * head_dim_;
      }
    }
  }

  double key_at(int64_t key, int32_t kv_head, int32_t d) const {
    return qkv_.get(key * kv_stride_ + int64_t{spec_.num_heads + kv_head} * head_dim_ + d);
  }
  double value_at(int64_t key, int32_t kv_head, int32_t d) const {
    return qkv_.get(key * kv_stride_ + int64_t{spec_.num_heads + spec_.num_kv_heads + kv_head} * head_dim_ + d);
  }

  double relative_bias_at(int32_t head, int32_t distance) const {
    const int32_t reach = spec_.relative_reach;
    return relative_bias_.get(int64_t{head} * (2 * reach + 1) + reach + std::clamp(distance, -reach, reach));
  }

  void reference(size_t s, int32_t i, int32_t head, std::vector<double>& expected) const {
    const SequenceSpec& seq = spec_.seqs[s];
    const int32_t kv_head = head / (spec_.num_heads / spec_.num_kv_heads);
    const int64_t token = query_start_[s] + i;
    const int32_t position = position_of(seq, i);
    const auto [begin, end] = visible(seq, i);
    std::vector<double> scores;
    double max = spec_.has_sinks ? sinks_.get(head) : -1e300;
    for (int32_t j = begin; j < end; ++j) {
      double dot = 0.0;
      for (int32_t d = 0; d < head_dim_; ++d) {
        dot += q_.get(token * q_stride_ + int64_t{head} * head_dim_ + d) * key_at(kv_start_[s] + j, kv_head, d);
      }
      double score = dot * scale();
      if (spec_.softcap > 0.0f) score = spec_.softcap * std::tanh(score / spec_.softcap);
      if (spec_.has_alibi) score += slopes_.get(head) * (j - position);
      if (spec_.relative_reach >= 0) score += relative_bias_at(head, j - position);
      scores.push_back(score);
      max = std::max(max, score);
    }
    double sum = spec_.has_sinks ? std::exp(sinks_.get(head) - max) : 0.0;
    double* out = expected.data() + (token * spec_.num_heads + head) * head_dim_;
    for (int32_t j = begin; j < end; ++j) {
      const double weight = std::exp(scores[static_cast<size_t>(j - begin)] - max);
      sum += weight;
      for (int32_t d = 0; d < head_dim_; ++d) out[d] += weight * value_at(kv_start_[s] + j, kv_head, d);
    }
    for (int32_t d = 0; d < head_dim_; ++d) out[d] /= sum;
  }

  static constexpr double kMaxValue = 2.0;

  AttentionSpec spec_;
  double weight_rounding_ = 0.0;
  int32_t head_dim_;
  int32_t num_tokens_ = 0;
  int64_t num_keys_ = 0;
  int32_t max_kv_len_ = 1;
  int64_t q_stride_ = 0, kv_stride_ = 0;
  int32_t table_stride_ = 0;
  std::vector<int32_t> query_start_, kv_lens_, block_tables_;
  std::vector<int64_t> kv_start_;
  Buffer q_, out_, qkv_, slopes_, sinks_, relative_bias_, k_cache_, v_cache_, workspace_, plan_;
};

inline void add_attention(std::vector<CaseEntry>& cases, const std::string& what, const AttentionSpec& spec,
                          bool is_benchmark = false) {
  const std::string name = str_cat("attention_", dtype_name(spec.dtype), "_h", spec.num_heads, "_kv", spec.num_kv_heads,
                                   "_d", spec.head_dim, "_b", spec.block_size, "_", what);
  cases.push_back({name, is_benchmark, [spec](const KernelTable& table, Stream stream) {
                     return std::make_unique<AttentionCase>(spec, table, stream);
                   }});
}

// Every option by itself and with others.
inline void add_attention_options(std::vector<CaseEntry>& cases, const AttentionSpec& base) {
  for (const int32_t window : {1, 7, 64, 100}) {
    AttentionSpec spec = base;
    spec.window = window;
    add_attention(cases, str_cat("window", window), spec);
  }
  AttentionSpec spec = base;
  spec.softcap = 2.0f;
  add_attention(cases, "softcap", spec);
  spec.has_alibi = true;
  add_attention(cases, "softcap_alibi", spec);
  spec = base;
  spec.has_sinks = true;
  add_attention(cases, "sinks", spec);
  spec.window = 20;
  add_attention(cases, "sinks_window", spec);
  spec = base;
  spec.causal = false;
  add_attention(cases, "noncausal", spec);
  for (const int32_t window : {1, 9, 65}) {
    spec.window = window;
    add_attention(cases, str_cat("noncausal_window", window), spec);
  }
  // Reaches within a chunk of keys, of several chunks, beyond every length; alone and with all that changes scores.
  spec = base;
  spec.causal = false;
  for (const int32_t reach : {0, 5, 70, 300}) {
    spec.relative_reach = reach;
    add_attention(cases, str_cat("noncausal_relative", reach), spec);
  }
  spec = base;
  spec.relative_reach = 20;
  add_attention(cases, "relative", spec);
  spec.has_alibi = spec.has_sinks = true;
  spec.softcap = 2.0f;
  spec.window = 33;
  add_attention(cases, "relative_all", spec);
}

// Head sizes and pages that kernels for tensor cores take, at lengths that an emulation can run: several splits of 256
// keys, groups beyond a tile, pages of up to 128 tokens.
inline void add_tensor_core_attention(std::vector<CaseEntry>& cases, DType dtype) {
  const std::vector<SequenceSpec> few = {{1, 1}, {5, 5}, {33, 40}, {1, 129}, {0, 30}, {20, 100}};
  add_attention_options(
      cases, {.dtype = dtype, .num_heads = 6, .num_kv_heads = 2, .head_dim = 64, .block_size = 64, .seqs = few});
  for (const int32_t block_size : {32, 48, 128}) {
    add_attention(
        cases, "pages",
        {.dtype = dtype, .num_heads = 4, .num_kv_heads = 2, .head_dim = 128, .block_size = block_size, .seqs = few});
  }
  add_attention(cases, "group71",
                {.dtype = dtype, .num_heads = 71, .num_kv_heads = 1, .head_dim = 64, .seqs = {{1, 70}, {3, 17}}});
  add_attention(cases, "group7",
                {.dtype = dtype, .num_heads = 14, .num_kv_heads = 2, .head_dim = 80, .seqs = {{1, 70}, {9, 33}}});
  add_attention(cases, "mha", {.dtype = dtype, .num_heads = 3, .num_kv_heads = 3, .head_dim = 96, .seqs = few});
  AttentionSpec base = {.dtype = dtype, .num_heads = 2, .num_kv_heads = 1, .head_dim = 64, .seqs = {{1, 1100}}};
  add_attention(cases, "splits", base);
  base.seqs = {{3, 513}, {1, 256}, {1, 601}, {40, 300}};
  base.has_sinks = true;
  add_attention(cases, "splits_mixed", base);
  base.window = 300;
  add_attention(cases, "splits_window", base);
  base.head_dim = 256;
  add_attention(cases, "splits_window", base);
}

// Sequences that begin with the same pages: two families among each other and others, some with several queries, with a
// whole prompt's, ending within the shared pages, or sharing less than their family.
inline void add_shared_attention(std::vector<CaseEntry>& cases, DType dtype) {
  AttentionSpec base = {.dtype = dtype, .num_heads = 6, .num_kv_heads = 2, .head_dim = 40, .seqs = {}};
  base.seqs = {{1, 300},         {1, 333},          {1, 290, 0, 272}, {1, 350, 1, 320},
               {2, 280, 0, 272}, {60, 340, 0, 272}, {1, 200, 0, 200}, {3, 400, 1, 320},
               {1, 77},          {1, 301, 2, 272},  {1, 190, 1, 144}, {40, 40}};
  add_attention(cases, "shared", base);
  base.has_alibi = base.has_sinks = true;
  base.softcap = 2.0f;
  base.relative_reach = 70;
  add_attention(cases, "shared_all", base);
  base.window = 100;
  add_attention(cases, "shared_window", base);
  base = {.dtype = dtype, .num_heads = 2, .num_kv_heads = 1, .head_dim = 16, .seqs = {{1, 2600}}};
  for (const int32_t keys : {1024, 1600, 2048, 2590}) {
    for (int32_t i = 0; i < 10; ++i) base.seqs.push_back({1 + i % 2, keys + 10 + 70 * i, 0, keys});
    add_attention(cases, str_cat("shared_splits_", keys), base);
  }
}

inline void add_attention_cases(std::vector<CaseEntry>& cases) {
  const std::vector<SequenceSpec> mixed = {{1, 1}, {5, 5}, {1, 70}, {33, 40}, {1, 129}, {64, 200}, {0, 30}, {2, 17}};
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const int32_t head_dim : {8, 20, 37, 40, 64, 80, 96, 128, 192, 256}) {
      add_attention(cases, "mixed",
                    {.dtype = dtype, .num_heads = 4, .num_kv_heads = 2, .head_dim = head_dim, .seqs = mixed});
    }
    add_attention_options(
        cases, {.dtype = dtype, .num_heads = 6, .num_kv_heads = 2, .head_dim = 32, .block_size = 32, .seqs = mixed});
    // More query heads than a tile has rows; a group that is no power of two; one head alone.
    add_attention(cases, "group71",
                  {.dtype = dtype, .num_heads = 71, .num_kv_heads = 1, .head_dim = 16, .seqs = mixed});
    add_attention(cases, "group7", {.dtype = dtype, .num_heads = 14, .num_kv_heads = 2, .head_dim = 16, .seqs = mixed});
    add_attention(cases, "mha", {.dtype = dtype, .num_heads = 3, .num_kv_heads = 3, .head_dim = 24, .seqs = mixed});
    // Several splits of keys, alone (so that splits become tasks) and together.
    AttentionSpec base = {.dtype = dtype, .num_heads = 2, .num_kv_heads = 1, .head_dim = 16, .seqs = {{1, 3100}}};
    add_attention(cases, "splits", base);
    base.seqs = {{3, 2049}, {1, 1024}, {1, 2500}, {40, 1030}};
    base.has_sinks = true;
    add_attention(cases, "splits_mixed", base);
    base.window = 1500;
    add_attention(cases, "splits_window", base);
    // Few rows that read far: the heads of a split in one task.
    base = {.dtype = dtype, .num_heads = 6, .num_kv_heads = 2, .head_dim = 16};
    base.seqs = {{1, 3100}, {2, 700}, {1, 2049}, {1, 1}, {2, 1025}};
    add_attention(cases, "splits_heads", base);
    base.window = 1500;
    add_attention(cases, "splits_heads_window", base);
    if (dtype != DType::f32) add_tensor_core_attention(cases, dtype);
    add_shared_attention(cases, dtype);
  }
  // More sequences, and more tiles of rows, than a block has threads.
  std::vector<SequenceSpec> many;
  for (int32_t i = 0; i < 300; ++i)
    many.push_back(i % 3 == 0 ? SequenceSpec{20, 20 + i % 7} : SequenceSpec{1, 1 + i % 40});
  add_attention(cases, "many", {.dtype = DType::bf16, .num_heads = 2, .num_kv_heads = 1, .head_dim = 64, .seqs = many});
  const auto bench = [&](const char* what, int32_t heads, int32_t kv_heads, int32_t head_dim,
                         const std::vector<SequenceSpec>& seqs) {
    add_attention(
        cases, what,
        {.dtype = DType::bf16, .num_heads = heads, .num_kv_heads = kv_heads, .head_dim = head_dim, .seqs = seqs}, true);
  };
  for (const int32_t head_dim : {64, 128}) {
    bench("decode1_of_1024", 9, 3, head_dim, {{1, 1024}});
    bench("decode1_of_8192", 9, 3, head_dim, {{1, 8192}});
    bench("decode1_of_65536", 9, 3, head_dim, {{1, 65536}});
    bench("decode64_of_1024", 9, 3, head_dim, std::vector<SequenceSpec>(64, {1, 1024}));
    std::vector<SequenceSpec> sharing(64, {1, 560, 0, 512});
    sharing[0].shares_with = -1;
    sharing[0].shared_keys = 0;
    bench("decode64_of_560_sharing_512", 9, 3, head_dim, sharing);
    bench("prefill_1024", 9, 3, head_dim, {{1024, 1024}});
    bench("chunk_256_of_4096", 14, 2, head_dim, {{256, 4096}});
  }
  bench("decode1_of_65536", 32, 8, 64, {{1, 65536}});
  bench("decode16_of_8192", 32, 8, 64, std::vector<SequenceSpec>(16, {1, 8192}));
  bench("mha_decode64_of_512", 12, 12, 64, std::vector<SequenceSpec>(64, {1, 512}));
}

}  // namespace quire::cases
