// A model without arithmetic: its keys and values are hashes, so that one wrong slot changes every later token.
//
// A slot holds (token, position, hash of the whole prefix). A prefix's hash is made from the one in the slot before,
// which is read through the block table, as attention would: what is computed depends on all that lies in the cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <set>
#include <span>
#include <vector>

#include "base/check.h"
#include "base/hash.h"
#include "model/batch.h"

namespace quire::testing {

constexpr int32_t kVocabSize = 1000;

inline uint64_t extend_prefix(uint64_t prefix, int32_t token) {
  return hash_combine(prefix, static_cast<uint64_t>(token));
}
// Sequences of one request differ by their index, as seeds make real ones differ.
inline int32_t next_token(uint64_t prefix, int32_t index) {
  return static_cast<int32_t>(hash_combine(prefix, static_cast<uint64_t>(index)) % kVocabSize);
}

class FakeModel {
 public:
  FakeModel(int32_t num_blocks, int32_t block_size)
      : block_size_(block_size), slots_(static_cast<size_t>(num_blocks) * static_cast<size_t>(block_size)) {}

  // Returns, for each sample row, the hash of all tokens up to it.
  std::vector<uint64_t> run(const Batch& batch) {
    check_shapes(batch);
    copy_blocks(batch);
    // A layer writes the keys and values of all tokens before it reads any, so a sequence may count on those that stand
    // in front of it in the step.
    std::vector<Slot> computed(batch.token_ids.size());
    std::set<int32_t> written;
    for (int32_t s = 0; s < batch.num_seqs(); ++s) {
      compute(batch, s, computed);
      const auto begin = static_cast<size_t>(batch.query_start[static_cast<size_t>(s)]);
      const auto end = static_cast<size_t>(batch.query_start[static_cast<size_t>(s) + 1]);
      for (size_t i = begin; i < end; ++i) {
        QUIRE_CHECK(written.insert(batch.slot_mapping[i]).second, "slot ", batch.slot_mapping[i], " is written twice");
        slots_[static_cast<size_t>(batch.slot_mapping[i])] = computed[i];
      }
    }
    for (int32_t s = 0; s < batch.num_seqs(); ++s) check_prefix(batch, s);
    std::vector<uint64_t> prefixes;
    for (const int32_t row : batch.sample_token_rows) prefixes.push_back(computed[static_cast<size_t>(row)].prefix);
    return prefixes;
  }

  // As if these slots had not been written.
  void forget(std::span<const int32_t> slots) {
    for (const int32_t slot : slots) slots_[static_cast<size_t>(slot)] = {};
  }

 private:
  struct Slot {
    int32_t token = -1;
    int32_t position = -1;
    uint64_t prefix = 0;
  };

  // In no order: no block is written that another copy reads or writes.
  void copy_blocks(const Batch& batch) {
    std::set<int32_t> sources, destinations;
    for (const BlockCopy& copy : batch.block_copies) {
      sources.insert(copy.source);
      QUIRE_CHECK(destinations.insert(copy.destination).second, "block ", copy.destination, " is copied to twice");
      const auto source = slots_.begin() + static_cast<int64_t>(copy.source) * block_size_;
      std::copy_n(source, block_size_, slots_.begin() + static_cast<int64_t>(copy.destination) * block_size_);
    }
    for (const int32_t block : destinations) QUIRE_CHECK(!sources.contains(block), "block ", block, " is read too");
  }

  int32_t slot_of(const Batch& batch, int32_t s, int32_t position) const {
    const int32_t b = position / block_size_;
    QUIRE_CHECK(b < batch.block_table_stride, "position ", position, " lies past the block table");
    const int32_t block = batch.block_tables[static_cast<size_t>(s * batch.block_table_stride + b)];
    QUIRE_CHECK(block >= 0, "position ", position, " has no block");
    return block * block_size_ + position % block_size_;
  }

  static void check_shapes(const Batch& batch) {
    const auto num_tokens = static_cast<size_t>(batch.num_tokens()), num_seqs = static_cast<size_t>(batch.num_seqs());
    QUIRE_CHECK(batch.positions.size() == num_tokens && batch.slot_mapping.size() == num_tokens);
    QUIRE_CHECK(batch.query_start.size() == num_seqs + 1 && batch.query_start.front() == 0);
    QUIRE_CHECK(batch.query_start.back() == batch.num_tokens());
    QUIRE_CHECK(batch.block_tables.size() == num_seqs * static_cast<size_t>(batch.block_table_stride));
    QUIRE_CHECK(batch.sample_token_rows.size() == batch.sample_seqs.size());
  }

  void compute(const Batch& batch, int32_t s, std::vector<Slot>& computed) const {
    const auto begin = static_cast<size_t>(batch.query_start[static_cast<size_t>(s)]);
    const auto end = static_cast<size_t>(batch.query_start[static_cast<size_t>(s) + 1]);
    QUIRE_CHECK(begin < end, "sequence ", s, " has no tokens");
    const int32_t first = batch.positions[begin];
    const Slot before = first > 0 ? slots_[static_cast<size_t>(slot_of(batch, s, first - 1))] : Slot{};
    QUIRE_CHECK(before.position == first - 1, "position ", first - 1, " is not computed");
    uint64_t prefix = before.prefix;
    for (size_t i = begin; i < end; ++i) {
      const int32_t position = first + static_cast<int32_t>(i - begin);
      QUIRE_CHECK(batch.positions[i] == position, "positions have a gap");
      QUIRE_CHECK(batch.slot_mapping[i] == slot_of(batch, s, position), "slots and block table disagree");
      prefix = extend_prefix(prefix, batch.token_ids[i]);
      computed[i] = {batch.token_ids[i], position, prefix};
    }
    QUIRE_CHECK(batch.kv_lens[static_cast<size_t>(s)] == batch.positions[end - 1] + 1, "kv_lens");
  }

  // Every key of the sequence is there, and nothing that somebody else wrote in the meantime.
  void check_prefix(const Batch& batch, int32_t s) const {
    uint64_t prefix = 0;
    for (int32_t position = 0; position < batch.kv_lens[static_cast<size_t>(s)]; ++position) {
      const Slot& slot = slots_[static_cast<size_t>(slot_of(batch, s, position))];
      prefix = extend_prefix(prefix, slot.token);
      QUIRE_CHECK(slot.position == position && slot.prefix == prefix, "position ", position, " was overwritten by ",
                  slot.position);
    }
  }

  int32_t block_size_;
  std::vector<Slot> slots_;
};

// A device that keeps the state of running sequences in rows: makes of a batch for rows the flat one it stands for.
class FakeRows {
 public:
  FakeRows(int64_t num_rows, int32_t block_size) : block_size_(block_size), rows_(static_cast<size_t>(num_rows)) {}

  Batch flatten(const Batch& batch) {
    for (const RowUpdate& update : batch.row_updates) apply(update, batch.row_block_ids);
    Batch flat = batch;
    for (const int32_t row : batch.rows) {
      flat.block_table_stride = std::max(flat.block_table_stride, static_cast<int32_t>(at(row).table.size()));
    }
    std::set<int32_t> seen;
    for (int32_t s = 0; s < batch.num_seqs(); ++s) {
      QUIRE_CHECK(seen.insert(batch.rows[static_cast<size_t>(s)]).second, "a row is listed twice");
      flatten_sequence(s, flat);
    }
    return flat;
  }

  void store(const Batch& batch, std::span<const int32_t> sampled) {
    for (size_t i = 0; i < sampled.size(); ++i) {
      at(batch.rows[static_cast<size_t>(batch.sample_seqs[i])]).last_token = sampled[i];
    }
  }
  int32_t num_prompt(int32_t row) { return at(row).num_prompt; }

 private:
  struct Row {
    int32_t last_token = -1;
    int32_t num_computed = -1;
    int32_t num_prompt = -1;
    std::vector<int32_t> table;
  };
  Row& at(int32_t row) { return rows_.at(static_cast<size_t>(row)); }

  void apply(const RowUpdate& update, const std::vector<int32_t>& block_ids) {
    Row& row = at(update.row);
    if (update.num_computed >= 0) row.num_computed = update.num_computed;
    row.num_prompt = update.num_prompt;
    QUIRE_CHECK(update.first_block <= static_cast<int32_t>(row.table.size()), "a gap in the table of row ", update.row);
    row.table.resize(static_cast<size_t>(update.first_block));
    const auto first = block_ids.begin() + update.block_ids_begin;
    row.table.insert(row.table.end(), first, first + update.num_blocks);
  }

  void flatten_sequence(int32_t s, Batch& flat) {
    Row& row = at(flat.rows[static_cast<size_t>(s)]);
    const auto end = static_cast<size_t>(flat.query_start[static_cast<size_t>(s) + 1]);
    for (auto i = static_cast<size_t>(flat.query_start[static_cast<size_t>(s)]); i < end; ++i) {
      if (flat.token_ids[i] < 0) {
        QUIRE_CHECK(i + 1 == end && row.last_token >= 0, "token ", i, " of row ", flat.rows[static_cast<size_t>(s)]);
        flat.token_ids[i] = row.last_token;
      }
      flat.positions.push_back(row.num_computed);
      const int32_t block = row.table.at(static_cast<size_t>(row.num_computed / block_size_));
      flat.slot_mapping.push_back(block * block_size_ + row.num_computed % block_size_);
      ++row.num_computed;
    }
    const size_t begin = flat.block_tables.size();
    flat.block_tables.resize(begin + static_cast<size_t>(flat.block_table_stride), -1);
    std::ranges::copy(row.table, flat.block_tables.begin() + static_cast<int64_t>(begin));
  }

  int32_t block_size_;
  std::vector<Row> rows_;
};

}  // namespace quire::testing
