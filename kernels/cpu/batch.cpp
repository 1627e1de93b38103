// What surrounds a step: the inputs of a decode-only batch from the rows of the running sequences, and copies of pages.
//
// The same for every instruction set. Limit of copy_blocks: reading and writing each page once.
#include <cstring>

#include "base/check.h"
#include "cpu/common_kernels.h"
#include "cpu/parallel.h"

namespace quire::cpu {
namespace {

void prepare_sequence(const PrepareBatchParams& p, int32_t s) {
  const int64_t row = p.rows[s];
  const int32_t* table = p.row_tables + row * p.row_table_stride;
  const int32_t position = p.num_computed[row]++;
  const int32_t last_block = position / p.block_size;
  QUIRE_CHECK(last_block < p.block_table_stride, "row ", row, " has more pages than ", p.block_table_stride);
  p.token_ids[s] = p.last_token_ids[p.token_rows != nullptr ? p.token_rows[s] : row];
  p.positions[s] = position;
  p.slot_mapping[s] = table[last_block] * p.block_size + position % p.block_size;
  p.kv_lens[s] = position + 1;
  std::memcpy(p.block_tables + s * p.block_table_stride, table,
              (static_cast<size_t>(last_block) + 1) * sizeof(int32_t));
}

}  // namespace

void prepare_batch(const PrepareBatchParams& p, Stream) {
  const int32_t num_seqs = *p.num_seqs;
  QUIRE_CHECK(num_seqs >= 0 && num_seqs <= p.max_seqs, num_seqs, " sequences in a batch of ", p.max_seqs);
  QUIRE_CHECK(p.block_size > 0, "block_size ", p.block_size);
  for (int32_t s = 0; s < num_seqs; ++s) prepare_sequence(p, s);
  for (int32_t s = num_seqs; s < p.max_seqs; ++s) {
    p.token_ids[s] = p.positions[s] = p.kv_lens[s] = 0;
    p.slot_mapping[s] = -1;
  }
  for (int32_t s = 0; s <= p.max_seqs; ++s) p.query_start[s] = s < num_seqs ? s : num_seqs;
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
