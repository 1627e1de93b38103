// What the rows of the running sequences are told before a step, and the tokens they get after it (device_rows.h).
//
// update_rows: a warp an update; lane 0 writes the counts, all lanes the page ids. One more warp for each row of
// sampling parameters, whose words the lanes share. store_sampled: a thread a sample. Rows of a launch are distinct, so
// nothing is shared and no order matters. Limit: latency of two dependent accesses.
#include "base/check.h"
#include "cuda/layer/layer.h"
#include "cuda/simt/simt.h"

namespace quire::cuda {

constexpr int kUpdateWarps = 4;
constexpr int kStoreThreads = 128;

__device__ void apply_update(const DeviceRows& rows, const RowUpdate& update, const int32_t* block_ids, int32_t lane) {
  if (lane == 0) {
    if (update.num_computed >= 0) rows.num_computed[update.row] = update.num_computed;
    rows.num_prompt[update.row] = update.num_prompt;
  }
  int32_t* table = rows.tables + update.row * rows.table_stride + update.first_block;
  for (int32_t i = lane; i < update.num_blocks; i += 32) table[i] = block_ids[update.block_ids_begin + i];
}

__global__ void __launch_bounds__(32 * kUpdateWarps) update_rows_kernel(const __grid_constant__ UpdateRowsParams p) {
  simt::grid_dependency_wait();
  simt::grid_dependency_launch();
  const int32_t i = static_cast<int32_t>(blockIdx.x * kUpdateWarps + threadIdx.x / 32);
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  if (i < p.num_updates) {
    apply_update(p.rows, p.updates[i], p.block_ids, lane);
  } else if (i < p.num_updates + p.num_sampling) {
    const SamplingRowUpdate& update = p.sampling[i - p.num_updates];
    constexpr int32_t kWords = sizeof(SamplingRow) / sizeof(uint64_t);
    static_assert(sizeof(SamplingRow) % sizeof(uint64_t) == 0);
    auto* const to = reinterpret_cast<uint64_t*>(p.rows.sampling + update.row);
    const auto* const from = reinterpret_cast<const uint64_t*>(&update.sampling);
    for (int32_t word = lane; word < kWords; word += 32) to[word] = from[word];
  }
}

__global__ void __launch_bounds__(kStoreThreads) store_sampled_kernel(const __grid_constant__ StoreSampledParams p) {
  simt::grid_dependency_wait();
  simt::grid_dependency_launch();
  const int32_t i = static_cast<int32_t>(blockIdx.x * kStoreThreads + threadIdx.x);
  if (i >= p.num_samples) return;
  const int32_t row = p.sample_rows[i];
  if (row >= 0) p.rows.last_token_ids[row] = p.token_ids[i];
}

void update_rows(const UpdateRowsParams& p, Stream stream) {
  QUIRE_CHECK(p.num_updates >= 0 && p.num_sampling >= 0, p.num_updates, " updates, ", p.num_sampling, " of sampling");
  const int32_t num_warps = p.num_updates + p.num_sampling;
  if (num_warps == 0) return;
  simt::launch<update_rows_kernel>({.grid = dim3(static_cast<unsigned>((num_warps + kUpdateWarps - 1) / kUpdateWarps)),
                                    .block = dim3(32 * kUpdateWarps),
                                    .stream = stream,
                                    .pdl = true},
                                   p);
}

void store_sampled(const StoreSampledParams& p, Stream stream) {
  QUIRE_CHECK(p.num_samples >= 0, p.num_samples, " samples");
  if (p.num_samples == 0) return;
  simt::launch<store_sampled_kernel>(
      {.grid = dim3(static_cast<unsigned>((p.num_samples + kStoreThreads - 1) / kStoreThreads)),
       .block = dim3(kStoreThreads),
       .stream = stream,
       .pdl = true},
      p);
}

}  // namespace quire::cuda
