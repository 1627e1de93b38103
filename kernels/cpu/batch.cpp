// What surrounds a step: the rows of the running sequences, the inputs of a batch made from them, and copies of pages.
//
// The same for every instruction set. Limit of copy_blocks: reading and writing each page once.
#include <cstring>

#include "base/check.h"
#include "cpu/common_kernels.h"
#include "cpu/parallel.h"

namespace quire::cpu {
namespace {

void prepare_sequence(const PrepareBatchParams& p, int32_t s) {
  const bool is_decode = p.sample_of_seq == nullptr;
  const int64_t row = p.seq_rows[s];
  const int32_t* table = p.rows.tables + row * p.rows.table_stride;
  const int32_t token_begin = is_decode ? s : p.query_start[s];
  const int32_t token_end = is_decode ? s + 1 : p.query_start[s + 1];
  if (is_decode || p.token_ids[token_end - 1] < 0) p.token_ids[token_end - 1] = p.rows.last_token_ids[row];
  for (int32_t token = token_begin; token < token_end; ++token) {
    const int32_t position = p.rows.num_computed[row]++;
    p.positions[token] = position;
    p.slot_mapping[token] = table[position / p.block_size] * p.block_size + position % p.block_size;
  }
  const int32_t kv_len = p.rows.num_computed[row];
  const int32_t num_blocks = (kv_len - 1) / p.block_size + 1;
  QUIRE_CHECK(num_blocks <= p.block_table_stride, "row ", row, " has more pages than ", p.block_table_stride);
  p.kv_lens[s] = kv_len;
  std::memcpy(p.block_tables + s * p.block_table_stride, table, static_cast<size_t>(num_blocks) * sizeof(int32_t));
  const int32_t sample = is_decode ? s : p.sample_of_seq[s];
  if (sample < 0) return;
  p.sample_token_rows[sample] = token_end - 1;
  p.sample_rows[sample] = static_cast<int32_t>(row);
  p.sampling[sample] = p.rows.sampling[row];
  p.sampling[sample].output_index = static_cast<uint32_t>(kv_len - p.rows.num_prompt[row]);
}

}  // namespace

void update_rows(const UpdateRowsParams& p, Stream) {
  for (int32_t i = 0; i < p.num_updates; ++i) {
    const RowUpdate& update = p.updates[i];
    if (update.num_computed >= 0) p.rows.num_computed[update.row] = update.num_computed;
    p.rows.num_prompt[update.row] = update.num_prompt;
    if (update.num_blocks == 0) continue;
    std::memcpy(p.rows.tables + update.row * p.rows.table_stride + update.first_block,
                p.block_ids + update.block_ids_begin, static_cast<size_t>(update.num_blocks) * sizeof(int32_t));
  }
  for (int32_t i = 0; i < p.num_sampling; ++i) p.rows.sampling[p.sampling[i].row] = p.sampling[i].sampling;
}

void prepare_batch(const PrepareBatchParams& p, Stream) {
  const int32_t num_seqs = *p.num_seqs;
  QUIRE_CHECK(num_seqs >= 0 && num_seqs <= p.max_seqs, num_seqs, " sequences in a batch of ", p.max_seqs);
  QUIRE_CHECK(p.block_size > 0, "block_size ", p.block_size);
  for (int32_t s = 0; s < num_seqs; ++s) prepare_sequence(p, s);
  for (int32_t s = num_seqs; s < p.max_seqs; ++s) {
    p.token_ids[s] = p.positions[s] = p.kv_lens[s] = 0;
    p.slot_mapping[s] = p.sample_rows[s] = -1;
    p.sample_token_rows[s] = s;
    p.sampling[s] = {.temperature = 0.0f};
  }
  if (p.sample_of_seq != nullptr) return;
  for (int32_t s = 0; s <= p.max_seqs; ++s) p.query_start[s] = s < num_seqs ? s : num_seqs;
}

void store_sampled(const StoreSampledParams& p, Stream) {
  for (int32_t i = 0; i < p.num_samples; ++i) {
    if (p.sample_rows[i] >= 0) p.rows.last_token_ids[p.sample_rows[i]] = p.token_ids[i];
  }
}

void copy_blocks(const CopyBlocksParams& p, Stream stream) {
  double bytes = 0.0;
  for (int32_t a = 0; a < p.num_arrays; ++a) bytes += static_cast<double>(p.arrays[a].page_bytes) * p.num_copies;
  for_each_task(stream, int64_t{p.num_arrays} * p.num_copies, bytes * 0.1, [&](int64_t i) {
    const PageArray& array = p.arrays[i / p.num_copies];
    const BlockCopy& copy = p.copies[i % p.num_copies];
    std::byte* pages = static_cast<std::byte*>(array.pages);
    std::memcpy(pages + copy.destination * array.page_bytes, pages + copy.source * array.page_bytes,
                static_cast<size_t>(array.page_bytes));
  });
}

}  // namespace quire::cpu
