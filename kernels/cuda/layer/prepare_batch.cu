// The inputs of a decode-only step, made on the device from the rows of the running sequences; prepare_batch.h says
// what each array is.
//
// Mapping: a warp a sequence, four warps a block, and one warp more than sequences for the last entry of query_start.
// Lane 0 does the arithmetic and raises num_computed; all lanes copy the page ids. Rows are distinct, so no two warps
// touch the same one, and lane 0 alone reads and writes its count; nothing is shared, a shuffle hands the count on.
// Limit: latency, three dependent loads (the row, its count, its last page); at 256 sequences of 8k tokens the tables
// are 1 MB of traffic.
#include "base/check.h"
#include "cuda/layer/layer.h"
#include "cuda/simt/simt.h"

namespace quire::cuda {

constexpr int kPrepareWarps = 4;  // sequences a block

__device__ void write_padding(const PrepareBatchParams& p, int32_t s) {
  p.token_ids[s] = 0;
  p.positions[s] = 0;
  p.slot_mapping[s] = -1;
  p.kv_lens[s] = 0;
}

__device__ void write_sequence(const PrepareBatchParams& p, int32_t s, int32_t row, int32_t position) {
  const int32_t page = p.row_tables[row * p.row_table_stride + position / p.block_size];
  p.num_computed[row] = position + 1;
  p.token_ids[s] = p.last_token_ids[p.token_rows != nullptr ? p.token_rows[s] : row];
  p.positions[s] = position;
  p.slot_mapping[s] = page * p.block_size + position % p.block_size;
  p.kv_lens[s] = position + 1;
}

__global__ void __launch_bounds__(32 * kPrepareWarps)
    prepare_batch_kernel(const __grid_constant__ PrepareBatchParams p) {
  simt::grid_dependency_wait();
  simt::grid_dependency_launch();
  const int32_t s = static_cast<int32_t>(blockIdx.x * kPrepareWarps + threadIdx.x / 32);
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  if (s > p.max_seqs) return;  // a whole warp
  const int32_t num_seqs = *p.num_seqs;
  if (lane == 0) p.query_start[s] = s < num_seqs ? s : num_seqs;
  if (s == p.max_seqs) return;
  if (s >= num_seqs) {
    if (lane == 0) write_padding(p, s);
    return;
  }
  const int32_t row = p.rows[s];
  int32_t position = 0;
  if (lane == 0) {
    position = p.num_computed[row];
    write_sequence(p, s, row, position);
  }
  position = __shfl_sync(0xffffffffu, position, 0);
  const int32_t num_pages = position / p.block_size + 1;
  for (int32_t i = lane; i < num_pages; i += 32) {
    p.block_tables[s * p.block_table_stride + i] = p.row_tables[row * p.row_table_stride + i];
  }
}

void prepare_batch(const PrepareBatchParams& p, Stream stream) {
  QUIRE_CHECK(p.block_size > 0, "block_size ", p.block_size);
  QUIRE_CHECK(p.max_seqs >= 0, "max_seqs ", p.max_seqs);
  const int32_t num_warps = p.max_seqs + 1;
  simt::launch<prepare_batch_kernel>(
      {.grid = dim3(static_cast<unsigned>((num_warps + kPrepareWarps - 1) / kPrepareWarps)),
       .block = dim3(32 * kPrepareWarps),
       .stream = stream,
       .pdl = true},
      p);
}

}  // namespace quire::cuda
