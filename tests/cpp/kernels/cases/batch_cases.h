// Cases of prepare_batch and copy_blocks: integers and bytes, so every result is exact.
#pragma once

#include "kernels/cases/kernel_case.h"

namespace quire::cases {

struct PrepareBatchSpec {
  int32_t num_seqs = 5, max_seqs = 8, block_size = 16;
  std::vector<int32_t> num_computed = {0, 1, 15, 16, 17};  // of the sequences in turn
  bool has_token_rows = false;
};

class PrepareBatchCase : public KernelCase {
 public:
  explicit PrepareBatchCase(const PrepareBatchSpec& spec)
      : spec_(spec),
        row_tables_(DType::i32, kNumRows * kRowTableStride),
        num_computed_(DType::i32, kNumRows),
        token_ids_(DType::i32, spec.max_seqs),
        positions_(DType::i32, spec.max_seqs),
        slots_(DType::i32, spec.max_seqs),
        kv_lens_(DType::i32, spec.max_seqs),
        query_start_(DType::i32, spec.max_seqs + 1),
        block_tables_(DType::i32, spec.max_seqs * kTableStride) {
    Random random(11);
    for (int32_t i = 0; i < kNumRows; ++i) last_token_ids_.push_back(static_cast<int32_t>(random.below(100000)));
    rows_.assign(static_cast<size_t>(spec.max_seqs), kUnusedRow);
    token_rows_ = rows_;
    for (int32_t s = 0; s < spec.num_seqs; ++s) {
      rows_[size_t(s)] = (s * 7 + 3) % kNumRows;  // 7 and kNumRows have no common factor: distinct
      token_rows_[size_t(s)] = spec.num_seqs - 1 - s;
    }
    PrepareBatchCase::reset();
    for (int32_t s = 0; s < spec.num_seqs; ++s) {
      const int32_t last_block = computed(s) / spec.block_size;
      for (int32_t b = 0; b <= last_block; ++b) table_entry(s, b) = static_cast<int32_t>(random.below(5000));
      bytes += 8.0 * (last_block + 1) + 36.0;
    }
  }

  void reset() override {
    for (Buffer* out : {&num_computed_, &token_ids_, &positions_, &slots_, &kv_lens_, &query_start_, &block_tables_}) {
      out->fill_untouched();
    }
    for (int32_t s = 0; s < spec_.num_seqs; ++s) num_computed_.as<int32_t>()[rows_[size_t(s)]] = computed(s);
  }

  void run(const KernelTable& table, Stream stream) override {
    PrepareBatchParams p;
    p.last_token_ids = last_token_ids_.data();
    p.num_computed = num_computed_.as<int32_t>();
    p.row_tables = row_tables_.as<int32_t>();
    p.row_table_stride = kRowTableStride;
    p.block_size = spec_.block_size;
    p.num_seqs = &spec_.num_seqs;
    p.rows = rows_.data();
    p.token_rows = spec_.has_token_rows ? token_rows_.data() : nullptr;
    p.max_seqs = spec_.max_seqs;
    p.token_ids = token_ids_.as<int32_t>();
    p.positions = positions_.as<int32_t>();
    p.slot_mapping = slots_.as<int32_t>();
    p.kv_lens = kv_lens_.as<int32_t>();
    p.query_start = query_start_.as<int32_t>();
    p.block_tables = block_tables_.as<int32_t>();
    p.block_table_stride = kTableStride;
    table.prepare_batch(p, stream);
  }

  std::vector<const Buffer*> outputs() const override {
    return {&num_computed_, &token_ids_, &positions_, &slots_, &kv_lens_, &query_start_, &block_tables_};
  }

  std::string check() const override {
    for (const Buffer* out : outputs()) {
      if (!out->guards_hold()) return "wrote outside of an output";
    }
    for (int32_t s = 0; s < spec_.max_seqs; ++s) {
      const std::string problem = check_sequence(s);
      if (!problem.empty()) return str_cat("sequence ", s, ": ", problem);
    }
    for (int32_t s = 0; s <= spec_.max_seqs; ++s) {
      if (at(query_start_, s) != std::min(s, spec_.num_seqs)) return str_cat("query_start ", s);
    }
    for (int32_t row = 0; row < kNumRows; ++row) {
      if (std::find(rows_.begin(), rows_.end(), row) == rows_.end() && !num_computed_.is_untouched(row)) {
        return str_cat("changed row ", row);
      }
    }
    return "";
  }

 private:
  static constexpr int32_t kNumRows = 300, kRowTableStride = 70, kTableStride = 67, kUnusedRow = 2147480000;

  static int32_t at(const Buffer& buffer, int64_t i) { return static_cast<const int32_t*>(buffer.data())[i]; }
  int32_t computed(int32_t s) const { return spec_.num_computed[size_t(s) % spec_.num_computed.size()]; }
  int32_t& table_entry(int32_t s, int32_t block) {
    return row_tables_.as<int32_t>()[int64_t{rows_[size_t(s)]} * kRowTableStride + block];
  }

  std::string check_sequence(int32_t s) const {
    const bool is_padding = s >= spec_.num_seqs;
    const int32_t position = is_padding ? 0 : computed(s);
    const int32_t num_blocks = is_padding ? 0 : position / spec_.block_size + 1;
    for (int32_t b = 0; b < kTableStride; ++b) {
      const int64_t to = int64_t{s} * kTableStride + b;
      if (b >= num_blocks && !block_tables_.is_untouched(to)) return str_cat("wrote entry ", b, " of its table");
      if (b < num_blocks && at(block_tables_, to) != row_entry(s, b)) return str_cat("entry ", b, " of its table");
    }
    if (at(positions_, s) != position) return "position";
    if (is_padding) {
      return at(token_ids_, s) == 0 && at(slots_, s) == -1 && at(kv_lens_, s) == 0 ? "" : "is not padding";
    }
    const int32_t token_row = spec_.has_token_rows ? token_rows_[size_t(s)] : rows_[size_t(s)];
    const int32_t slot = row_entry(s, num_blocks - 1) * spec_.block_size + position % spec_.block_size;
    if (at(token_ids_, s) != last_token_ids_[size_t(token_row)]) return "token id";
    if (at(slots_, s) != slot) return "slot";
    if (at(kv_lens_, s) != position + 1) return "kv_len";
    return at(num_computed_, rows_[size_t(s)]) == position + 1 ? "" : "num_computed";
  }
  int32_t row_entry(int32_t s, int32_t block) const {
    return at(row_tables_, int64_t{rows_[size_t(s)]} * kRowTableStride + block);
  }

  PrepareBatchSpec spec_;
  Buffer row_tables_, num_computed_, token_ids_, positions_, slots_, kv_lens_, query_start_, block_tables_;
  std::vector<int32_t> last_token_ids_, rows_, token_rows_;
};

struct CopyBlocksSpec {
  std::vector<int64_t> page_bytes = {32, 4096, 48, 1040};  // of each array
  int32_t num_blocks = 9;
  int32_t num_copies = 3;
};

class CopyBlocksCase : public KernelCase {
 public:
  explicit CopyBlocksCase(const CopyBlocksSpec& spec) : spec_(spec) {
    for (const int64_t page_bytes : spec.page_bytes) {
      buffers_.emplace_back(DType::u8, page_bytes * spec.num_blocks);
      arrays_.push_back({buffers_.back().data(), page_bytes});
      bytes += 2.0 * static_cast<double>(page_bytes) * spec.num_copies;
    }
    QUIRE_CHECK(3 * spec.num_copies <= spec.num_blocks);
    // A source may serve twice; a destination is in no other pair.
    for (int32_t i = 0; i < spec.num_copies; ++i) copies_.push_back({i / 2 * 3, i * 3 + 1});
    CopyBlocksCase::reset();
  }

  void reset() override {
    for (size_t a = 0; a < buffers_.size(); ++a) {
      for (int64_t i = 0; i < buffers_[a].count(); ++i) buffers_[a].as<uint8_t>()[i] = before(a, i);
    }
  }

  void run(const KernelTable& table, Stream stream) override {
    CopyBlocksParams p;
    p.arrays = arrays_.data();
    p.num_arrays = static_cast<int32_t>(arrays_.size());
    p.copies = copies_.data();
    p.num_copies = static_cast<int32_t>(copies_.size());
    table.copy_blocks(p, stream);
  }

  std::vector<const Buffer*> outputs() const override {
    std::vector<const Buffer*> all;
    for (const Buffer& buffer : buffers_) all.push_back(&buffer);
    return all;
  }

  std::string check() const override {
    for (size_t a = 0; a < buffers_.size(); ++a) {
      if (!buffers_[a].guards_hold()) return str_cat("wrote outside of array ", a);
      const int64_t page_bytes = spec_.page_bytes[a];
      for (int64_t i = 0; i < buffers_[a].count(); ++i) {
        int64_t from = i;
        for (const BlockCopy& copy : copies_) {
          if (i / page_bytes == copy.destination) from = copy.source * page_bytes + i % page_bytes;
        }
        const uint8_t got = static_cast<const uint8_t*>(buffers_[a].data())[i];
        if (got != before(a, from)) return str_cat("array ", a, " page ", i / page_bytes, " byte ", i % page_bytes);
      }
    }
    return "";
  }

 private:
  static uint8_t before(size_t array, int64_t i) {
    return static_cast<uint8_t>(mix64(static_cast<uint64_t>(i) * 64 + array));
  }

  CopyBlocksSpec spec_;
  std::vector<Buffer> buffers_;
  std::vector<PageArray> arrays_;
  std::vector<BlockCopy> copies_;
};

inline void add_batch_cases(std::vector<CaseEntry>& cases) {
  const auto prepare = [&](const std::string& what, const PrepareBatchSpec& spec) {
    cases.push_back({"prepare_batch_" + what, false,
                     [spec](const KernelTable&, Stream) { return std::make_unique<PrepareBatchCase>(spec); }});
  };
  prepare("padded", {});
  prepare("full", {.num_seqs = 8});
  prepare("one", {.num_seqs = 1, .max_seqs = 1, .num_computed = {1023}});
  prepare("all_padding", {.num_seqs = 0, .max_seqs = 4});
  prepare("token_rows", {.num_seqs = 37, .max_seqs = 64, .block_size = 48, .has_token_rows = true});
  prepare("many", {.num_seqs = 259, .max_seqs = 300, .num_computed = {0, 15, 16, 500, 511, 512, 1024, 1071}});
  const auto copy = [&](const std::string& what, const CopyBlocksSpec& spec) {
    cases.push_back({"copy_blocks_" + what, false,
                     [spec](const KernelTable&, Stream) { return std::make_unique<CopyBlocksCase>(spec); }});
  };
  copy("layers", {});
  copy("one", {.page_bytes = {16}, .num_blocks = 3, .num_copies = 1});
  copy("large", {.page_bytes = {65536, 65536}, .num_blocks = 6, .num_copies = 2});
}

}  // namespace quire::cases
