// Cases of what a device does with the rows of running sequences: integers alone, so every result is exact.
#pragma once

#include "kernels/cases/kernel_case.h"

namespace quire::cases {

// Rows of everything, "untouched" where a case sets nothing.
struct RowsBuffers {
  static constexpr int32_t kNumRows = 300, kTableStride = 70;

  Buffer last_token_ids{DType::i32, kNumRows};
  Buffer num_computed{DType::i32, kNumRows};
  Buffer num_prompt{DType::i32, kNumRows};
  Buffer tables{DType::i32, int64_t{kNumRows} * kTableStride};
  Buffer sampling{DType::u8, int64_t{kNumRows} * int64_t{sizeof(SamplingRow)}};

  std::vector<Buffer*> all() { return {&last_token_ids, &num_computed, &num_prompt, &tables, &sampling}; }
  void fill_untouched() {
    for (Buffer* buffer : all()) buffer->fill_untouched();
  }
  DeviceRows view() {
    return {last_token_ids.as<int32_t>(),
            num_computed.as<int32_t>(),
            num_prompt.as<int32_t>(),
            tables.as<int32_t>(),
            kTableStride,
            reinterpret_cast<SamplingRow*>(sampling.as<uint8_t>())};
  }
  // Row number `i` of a list of distinct rows: 7 and kNumRows have no common factor.
  static int32_t nth(int32_t i) { return (i * 7 + 3) % kNumRows; }
};

inline int32_t int_at(const Buffer& buffer, int64_t i) { return static_cast<const int32_t*>(buffer.data())[i]; }
inline SamplingRow sampling_at(const Buffer& buffer, int64_t i) {
  SamplingRow row;
  std::memcpy(static_cast<void*>(&row), static_cast<const std::byte*>(buffer.data()) + i * int64_t{sizeof(row)},
              sizeof(row));
  return row;
}
// Parameters that tell rows apart.
inline SamplingRow sampling_of(int32_t row) {
  SamplingRow sampling;
  sampling.temperature = 0.5f + static_cast<float>(row);
  sampling.seed = static_cast<uint64_t>(row) << 33;
  sampling.output_index = 77;  // of no meaning in a row
  sampling.num_counts = row + 1;
  return sampling;
}
inline bool same_sampling(const SamplingRow& a, const SamplingRow& b) {
  return a.temperature == b.temperature && a.seed == b.seed && a.num_counts == b.num_counts &&
         a.output_index == b.output_index;
}

struct PrepareBatchSpec {
  int32_t num_seqs = 5, max_seqs = 8, block_size = 16;
  std::vector<int32_t> num_computed = {0, 1, 15, 16, 17};  // of the sequences in turn
  // Tokens of the sequences in turn; empty: a decode step. Of each three sequences the first samples what follows the
  // newest token of its row, the second what follows a token the host knows, the third does not sample.
  std::vector<int32_t> chunks = {};
};

class PrepareBatchCase : public KernelCase {
 public:
  explicit PrepareBatchCase(const PrepareBatchSpec& spec)
      : spec_(spec),
        token_ids_(DType::i32, num_tokens(spec)),
        positions_(DType::i32, num_tokens(spec)),
        slots_(DType::i32, num_tokens(spec)),
        kv_lens_(DType::i32, spec.max_seqs),
        query_start_(DType::i32, spec.max_seqs + 1),
        block_tables_(DType::i32, spec.max_seqs * kTableStride),
        sample_token_rows_(DType::i32, spec.max_seqs),
        sample_rows_(DType::i32, spec.max_seqs),
        sampling_(DType::u8, spec.max_seqs * int64_t{sizeof(SamplingRow)}) {
    seq_rows_.assign(static_cast<size_t>(spec.max_seqs), kUnusedRow);
    sample_of_seq_.assign(static_cast<size_t>(spec.max_seqs), -1);
    int32_t num_samples = 0;
    for (int32_t s = 0; s < spec.num_seqs; ++s) {
      seq_rows_[size_t(s)] = RowsBuffers::nth(s);
      if (is_decode() || s % 3 != 2) sample_of_seq_[size_t(s)] = num_samples++;
      bytes += 8.0 * (computed(s) / spec.block_size + 1) + 12.0 * chunk(s) + 2.0 * sizeof(SamplingRow) + 24.0;
    }
    PrepareBatchCase::reset();
  }

  void reset() override {
    rows_.fill_untouched();
    for (Buffer* out : {&token_ids_, &positions_, &slots_, &kv_lens_, &query_start_, &block_tables_,
                        &sample_token_rows_, &sample_rows_, &sampling_}) {
      out->fill_untouched();
    }
    Random random(11);
    const DeviceRows view = rows_.view();
    // What lies behind a row's pages must not get into a batch.
    std::fill_n(view.tables, RowsBuffers::kNumRows * RowsBuffers::kTableStride, kUnusedRow);
    int32_t token = 0;
    if (!is_decode()) query_start_.as<int32_t>()[0] = 0;
    for (int32_t s = 0; s < spec_.num_seqs; ++s) {
      const int32_t row = seq_rows_[size_t(s)];
      view.last_token_ids[row] = 5000 + row;
      view.num_computed[row] = computed(s);
      view.num_prompt[row] = std::min(computed(s) + chunk(s), 9 + s % 5);
      view.sampling[row] = sampling_of(row);
      const int32_t num_blocks = (computed(s) + chunk(s) - 1) / spec_.block_size + 1;
      for (int32_t b = 0; b < num_blocks; ++b) {
        view.tables[row * view.table_stride + b] = static_cast<int32_t>(random.below(5000));
      }
      if (is_decode()) continue;
      for (int32_t i = 0; i < chunk(s); ++i, ++token) token_ids_.as<int32_t>()[token] = 101 + token;
      if (s % 3 == 0) token_ids_.as<int32_t>()[token - 1] = -1;
      query_start_.as<int32_t>()[s + 1] = token;
    }
  }

  void run(const KernelTable& table, Stream stream) override {
    PrepareBatchParams p;
    p.rows = rows_.view();
    p.block_size = spec_.block_size;
    p.num_seqs = &spec_.num_seqs;
    p.seq_rows = seq_rows_.data();
    p.max_seqs = spec_.max_seqs;
    p.sample_of_seq = is_decode() ? nullptr : sample_of_seq_.data();
    p.token_ids = token_ids_.as<int32_t>();
    p.positions = positions_.as<int32_t>();
    p.slot_mapping = slots_.as<int32_t>();
    p.kv_lens = kv_lens_.as<int32_t>();
    p.query_start = query_start_.as<int32_t>();
    p.block_tables = block_tables_.as<int32_t>();
    p.block_table_stride = kTableStride;
    p.sample_token_rows = sample_token_rows_.as<int32_t>();
    p.sample_rows = sample_rows_.as<int32_t>();
    p.sampling = reinterpret_cast<SamplingRow*>(sampling_.as<uint8_t>());
    table.prepare_batch(p, stream);
  }

  // Without the sampling parameters: the bytes between their fields may be anything. check() compares the fields.
  std::vector<const Buffer*> outputs() const override {
    return {&rows_.num_computed, &token_ids_,    &positions_,         &slots_,      &kv_lens_,
            &query_start_,       &block_tables_, &sample_token_rows_, &sample_rows_};
  }

  std::string check() const override {
    for (const Buffer* out : outputs()) {
      if (!out->guards_hold()) return "wrote outside of an output";
    }
    if (!sampling_.guards_hold()) return "wrote outside of the sampling parameters";
    int32_t token = 0;
    for (int32_t s = 0; s < spec_.max_seqs; ++s) {
      const std::string problem = s < spec_.num_seqs ? check_sequence(s, token) : check_padding(s);
      if (!problem.empty()) return str_cat("sequence ", s, ": ", problem);
      token += chunk(s);
    }
    for (int32_t s = 0; is_decode() && s <= spec_.max_seqs; ++s) {
      if (int_at(query_start_, s) != std::min(s, spec_.num_seqs)) return str_cat("query_start ", s);
    }
    for (int32_t row = 0; row < RowsBuffers::kNumRows; ++row) {
      if (std::find(seq_rows_.begin(), seq_rows_.end(), row) == seq_rows_.end() &&
          !rows_.num_computed.is_untouched(row)) {
        return str_cat("changed row ", row);
      }
    }
    return "";
  }

 private:
  static constexpr int32_t kTableStride = 67, kUnusedRow = 2147480000;

  static int64_t num_tokens(const PrepareBatchSpec& spec) {
    int64_t count = 0;
    for (int32_t s = 0; s < spec.max_seqs; ++s) {
      count += spec.chunks.empty() ? 1 : spec.chunks[size_t(s) % spec.chunks.size()];
    }
    return count;
  }
  bool is_decode() const { return spec_.chunks.empty(); }
  int32_t chunk(int32_t s) const { return is_decode() ? 1 : spec_.chunks[size_t(s) % spec_.chunks.size()]; }
  int32_t computed(int32_t s) const { return spec_.num_computed[size_t(s) % spec_.num_computed.size()]; }
  int32_t row_entry(int32_t s, int32_t block) const {
    return int_at(rows_.tables, int64_t{seq_rows_[size_t(s)]} * RowsBuffers::kTableStride + block);
  }

  std::string check_padding(int32_t s) const {
    for (int32_t b = 0; b < kTableStride; ++b) {
      if (!block_tables_.is_untouched(int64_t{s} * kTableStride + b)) return str_cat("wrote entry ", b);
    }
    const bool is_empty =
        int_at(token_ids_, s) == 0 && int_at(positions_, s) == 0 && int_at(slots_, s) == -1 && int_at(kv_lens_, s) == 0;
    const SamplingRow sampling = sampling_at(sampling_, s);
    const bool samples_for_nobody = int_at(sample_token_rows_, s) == s && int_at(sample_rows_, s) == -1 &&
                                    sampling.temperature == 0.0f && sampling.num_counts == 0;
    return is_empty && samples_for_nobody ? "" : "is not padding";
  }

  std::string check_sequence(int32_t s, int32_t first_token) const {
    const int32_t row = seq_rows_[size_t(s)];
    const int32_t kv_len = computed(s) + chunk(s);
    const int32_t num_blocks = (kv_len - 1) / spec_.block_size + 1;
    for (int32_t b = 0; b < kTableStride; ++b) {
      const int64_t to = int64_t{s} * kTableStride + b;
      if (b >= num_blocks && !block_tables_.is_untouched(to)) return str_cat("wrote entry ", b, " of its table");
      if (b < num_blocks && int_at(block_tables_, to) != row_entry(s, b)) return str_cat("entry ", b, " of its table");
    }
    for (int32_t i = 0; i < chunk(s); ++i) {
      const int32_t token = first_token + i, position = computed(s) + i;
      const bool is_newest = is_decode() || (s % 3 == 0 && i + 1 == chunk(s));
      if (int_at(token_ids_, token) != (is_newest ? 5000 + row : 101 + token)) return str_cat("token ", i);
      if (int_at(positions_, token) != position) return str_cat("position ", i);
      const int32_t slot = row_entry(s, position / spec_.block_size) * spec_.block_size + position % spec_.block_size;
      if (int_at(slots_, token) != slot) return str_cat("slot ", i);
    }
    if (int_at(kv_lens_, s) != kv_len) return "kv_len";
    if (int_at(rows_.num_computed, row) != kv_len) return "num_computed";
    const int32_t sample = sample_of_seq_[size_t(s)];
    if (sample < 0) return "";
    SamplingRow expected = sampling_of(row);
    expected.output_index = static_cast<uint32_t>(kv_len - std::min(kv_len, 9 + s % 5));
    if (int_at(sample_token_rows_, sample) != first_token + chunk(s) - 1) return "token of its sample";
    if (int_at(sample_rows_, sample) != row) return "row of its sample";
    return same_sampling(sampling_at(sampling_, sample), expected) ? "" : "sampling parameters";
  }

  PrepareBatchSpec spec_;
  RowsBuffers rows_;
  Buffer token_ids_, positions_, slots_, kv_lens_, query_start_, block_tables_, sample_token_rows_, sample_rows_,
      sampling_;
  std::vector<int32_t> seq_rows_, sample_of_seq_;
};

// Updates of num_updates rows and sampling parameters of num_sampling others, then a sampled token for each.
class UpdateRowsCase : public KernelCase {
 public:
  UpdateRowsCase(int32_t num_updates, int32_t num_sampling) {
    for (int32_t i = 0; i < num_updates; ++i) {
      const int32_t num_blocks = i % 4 == 1 ? 0 : i % 40;
      updates_.push_back({.row = RowsBuffers::nth(i),
                          .num_computed = i % 3 == 0 ? -1 : 100 + i,
                          .num_prompt = 10 + i,
                          .first_block = i % 31,
                          .num_blocks = num_blocks,
                          .block_ids_begin = static_cast<int32_t>(block_ids_.size())});
      for (int32_t b = 0; b < num_blocks; ++b) block_ids_.push_back(1000 * i + b);
      sample_rows_.push_back(i % 5 == 4 ? -1 : RowsBuffers::nth(i));
      token_ids_.push_back(20000 + i);
    }
    for (int32_t i = 0; i < num_sampling; ++i) {
      const int32_t row = RowsBuffers::nth(i + 2);
      sampling_.push_back({row, sampling_of(row)});
    }
    bytes = 32.0 * num_updates + 8.0 * static_cast<double>(block_ids_.size()) +
            2.0 * sizeof(SamplingRowUpdate) * num_sampling;
    UpdateRowsCase::reset();
  }

  void reset() override { rows_.fill_untouched(); }

  void run(const KernelTable& table, Stream stream) override {
    table.update_rows({.rows = rows_.view(),
                       .updates = updates_.data(),
                       .num_updates = static_cast<int32_t>(updates_.size()),
                       .block_ids = block_ids_.data(),
                       .sampling = sampling_.data(),
                       .num_sampling = static_cast<int32_t>(sampling_.size())},
                      stream);
    table.store_sampled({.rows = rows_.view(),
                         .sample_rows = sample_rows_.data(),
                         .token_ids = token_ids_.data(),
                         .num_samples = static_cast<int32_t>(sample_rows_.size())},
                        stream);
  }

  std::vector<const Buffer*> outputs() const override {
    return {&rows_.last_token_ids, &rows_.num_computed, &rows_.num_prompt, &rows_.tables, &rows_.sampling};
  }

  std::string check() const override {
    for (const Buffer* out : outputs()) {
      if (!out->guards_hold()) return "wrote outside of the rows";
    }
    for (int32_t row = 0; row < RowsBuffers::kNumRows; ++row) {
      const std::string problem = check_row(row);
      if (!problem.empty()) return str_cat("row ", row, ": ", problem);
    }
    return "";
  }

 private:
  std::string check_row(int32_t row) const {
    const auto update = std::find_if(updates_.begin(), updates_.end(), [&](const auto& u) { return u.row == row; });
    const auto sampling = std::find_if(sampling_.begin(), sampling_.end(), [&](const auto& u) { return u.row == row; });
    const auto stored = std::find(sample_rows_.begin(), sample_rows_.end(), row);
    const auto is = [&](const Buffer& buffer, bool is_set, int32_t value) {
      return is_set ? int_at(buffer, row) == value : buffer.is_untouched(row);
    };
    const bool is_updated = update != updates_.end();
    if (!is(rows_.num_prompt, is_updated, is_updated ? update->num_prompt : 0)) return "num_prompt";
    const bool has_count = is_updated && update->num_computed >= 0;
    if (!is(rows_.num_computed, has_count, has_count ? update->num_computed : 0)) return "num_computed";
    if (!is(rows_.last_token_ids, stored != sample_rows_.end(),
            20000 + static_cast<int32_t>(stored - sample_rows_.begin()))) {
      return "last token";
    }
    for (int32_t b = 0; b < RowsBuffers::kTableStride; ++b) {
      const int64_t at = int64_t{row} * RowsBuffers::kTableStride + b;
      const bool is_new = is_updated && b >= update->first_block && b < update->first_block + update->num_blocks;
      if (!is_new && !rows_.tables.is_untouched(at)) return str_cat("wrote table entry ", b);
      if (is_new && int_at(rows_.tables, at) != block_ids_[size_t(update->block_ids_begin + b - update->first_block)]) {
        return str_cat("table entry ", b);
      }
    }
    if (sampling == sampling_.end())
      return rows_.sampling.is_untouched(row * int64_t{sizeof(SamplingRow)}) ? "" : "sampling";
    return same_sampling(sampling_at(rows_.sampling, row), sampling->sampling) ? "" : "sampling";
  }

  RowsBuffers rows_;
  std::vector<RowUpdate> updates_;
  std::vector<int32_t> block_ids_, sample_rows_, token_ids_;
  std::vector<SamplingRowUpdate> sampling_;
};

inline void add_rows_cases(std::vector<CaseEntry>& cases) {
  const auto prepare = [&](const std::string& what, const PrepareBatchSpec& spec) {
    cases.push_back({"prepare_batch_" + what, false,
                     [spec](const KernelTable&, Stream) { return std::make_unique<PrepareBatchCase>(spec); }});
  };
  prepare("padded", {});
  prepare("full", {.num_seqs = 8});
  prepare("one", {.num_seqs = 1, .max_seqs = 1, .num_computed = {1023}});
  prepare("all_padding", {.num_seqs = 0, .max_seqs = 4});
  prepare("large_pages", {.num_seqs = 37, .max_seqs = 64, .block_size = 48});
  prepare("many", {.num_seqs = 259, .max_seqs = 300, .num_computed = {0, 15, 16, 500, 511, 512, 1024, 1071}});
  prepare("chunks", {.num_seqs = 7, .max_seqs = 7, .chunks = {1, 33, 16, 64, 1, 100, 5}});
  prepare("one_chunk", {.num_seqs = 1, .max_seqs = 1, .num_computed = {31}, .chunks = {1000}});
  const auto update = [&](const std::string& what, int32_t num_updates, int32_t num_sampling) {
    cases.push_back({"update_rows_" + what, false, [=](const KernelTable&, Stream) {
                       return std::make_unique<UpdateRowsCase>(num_updates, num_sampling);
                     }});
  };
  update("one", 1, 1);
  update("pages", 41, 0);
  update("sampling", 0, 7);
  update("many", 290, 131);
}

}  // namespace quire::cases
