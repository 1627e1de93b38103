// The inputs of a step, made on the device from the rows of the running sequences; prepare_batch.h says what each array
// is.
//
// Mapping: a warp a sequence, four warps a block, and one warp more than sequences for the last entry of query_start.
// Lane 0 does what is once a sequence and raises num_computed; all lanes share out the tokens of a chunk and the page
// ids. Rows are distinct, so no two warps touch the same one, and lane 0 alone reads and writes its count; nothing is
// shared, a shuffle hands the count on.
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
  p.sample_token_rows[s] = s;
  p.sample_rows[s] = -1;
  SamplingRow greedy;
  greedy.temperature = 0.0f;
  p.sampling[s] = greedy;
}

// The sample of a sequence whose last token is `token`, `kv_len` keys into its text.
__device__ void write_sample(const PrepareBatchParams& p, int32_t sample, int32_t row, int32_t token, int32_t kv_len) {
  p.sample_token_rows[sample] = token;
  p.sample_rows[sample] = row;
  SamplingRow sampling = p.rows.sampling[row];
  sampling.output_index = static_cast<uint32_t>(kv_len - p.rows.num_prompt[row]);
  p.sampling[sample] = sampling;
}

__global__ void __launch_bounds__(32 * kPrepareWarps)
    prepare_batch_kernel(const __grid_constant__ PrepareBatchParams p) {
  simt::grid_dependency_wait();
  simt::grid_dependency_launch();
  const int32_t s = static_cast<int32_t>(blockIdx.x * kPrepareWarps + threadIdx.x / 32);
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  if (s > p.max_seqs) return;  // a whole warp
  const bool is_decode = p.sample_of_seq == nullptr;
  const int32_t num_seqs = *p.num_seqs;
  if (is_decode && lane == 0) p.query_start[s] = s < num_seqs ? s : num_seqs;
  if (s == p.max_seqs) return;
  if (s >= num_seqs) {
    if (lane == 0) write_padding(p, s);
    return;
  }
  const int32_t row = p.seq_rows[s];
  const int32_t token_begin = is_decode ? s : p.query_start[s];
  const int32_t token_end = is_decode ? s + 1 : p.query_start[s + 1];
  int32_t begin = 0;
  if (lane == 0) {
    begin = p.rows.num_computed[row];
    const int32_t kv_len = begin + token_end - token_begin;
    p.rows.num_computed[row] = kv_len;
    p.kv_lens[s] = kv_len;
    if (is_decode || p.token_ids[token_end - 1] < 0) p.token_ids[token_end - 1] = p.rows.last_token_ids[row];
    const int32_t sample = is_decode ? s : p.sample_of_seq[s];
    if (sample >= 0) write_sample(p, sample, row, token_end - 1, kv_len);
  }
  begin = __shfl_sync(0xffffffffu, begin, 0);
  const int32_t* table = p.rows.tables + row * p.rows.table_stride;
  for (int32_t token = token_begin + lane; token < token_end; token += 32) {
    const int32_t position = begin + token - token_begin;
    p.positions[token] = position;
    p.slot_mapping[token] = table[position / p.block_size] * p.block_size + position % p.block_size;
  }
  const int32_t num_pages = (begin + token_end - token_begin - 1) / p.block_size + 1;
  for (int32_t i = lane; i < num_pages; i += 32) p.block_tables[s * p.block_table_stride + i] = table[i];
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
