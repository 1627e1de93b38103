// The table of the CUDA backend. Knows the launchers of all families, and no kernel.
#include "cuda/attention/attention.h"
#include "cuda/comm/reduce_rows.h"
#include "cuda/cuda_kernels.h"
#include "cuda/embedding/embedding.h"
#include "cuda/gemm/gemm.h"
#include "cuda/layer/layer.h"
#include "cuda/sampling/sampling.h"
#include "cuda/simt/simt.h"

namespace quire::cuda {
const KernelTable& kernels() {
  static const KernelTable table = {
      .name = simt::kBackendName,
      .packed_weight_bytes = packed_weight_bytes,
      .pack_weight = pack_weight,
      .unpack_weight = unpack_weight,
      .fill_dummy = fill_dummy,
      .embedding = embedding,
      .norm = norm,
      .gemm = gemm,
      .gemm_workspace_bytes = gemm_workspace_bytes,
      .gemm_library_workspace_bytes = gemm_library_workspace_bytes,
      .rope_kv_write = rope_kv_write,
      .paged_attention = paged_attention,
      .attention_workspace_bytes = attention_workspace_bytes,
      .attention_plan_bytes = attention_plan_bytes,
      .plan_attention = plan_attention,
      .reduce_rows = reduce_rows,
      .mean_rows = mean_rows,
      .sample = sample,
      .sampling_workspace_bytes = sampling_workspace_bytes,
      .update_rows = update_rows,
      .prepare_batch = prepare_batch,
      .store_sampled = store_sampled,
      .copy_blocks = copy_blocks,
      .block_size_multiple = 16,
  };
  return table;
}

}  // namespace quire::cuda
