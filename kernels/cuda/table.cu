// The table of the CUDA backend. Knows the launchers of all families, and no kernel.
#include "base/check.h"
#include "cuda/attention/attention.h"
#include "cuda/cuda_kernels.h"
#include "cuda/embedding/embedding.h"
#include "cuda/gemm/gemm.h"
#include "cuda/layer/layer.h"
#include "cuda/simt/simt.h"

namespace quire::cuda {
namespace {

[[noreturn]] void fail_missing(const char* family) {
  throw NotSupported(str_cat("the ", simt::kBackendName, " backend has no ", family, " yet"));
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable table = {
      .name = simt::kBackendName,
      .packed_weight_bytes = packed_weight_bytes,
      .pack_weight = pack_weight,
      .embedding = embedding,
      .norm = norm,
      .gemm = gemm,
      .gemm_workspace_bytes = gemm_workspace_bytes,
      .rope_kv_write = rope_kv_write,
      .paged_attention = paged_attention,
      .attention_workspace_bytes = attention_workspace_bytes,
      .attention_plan_bytes = attention_plan_bytes,
      .plan_attention = plan_attention,
      .sample = [](const SamplingParamsBlock&, Stream) { fail_missing("sample"); },
      .sampling_workspace_bytes = [](int64_t, int64_t, int) -> size_t { fail_missing("sample"); },
      .prepare_batch = prepare_batch,
      .copy_blocks = copy_blocks,
      .block_size_multiple = 16,
  };
  return table;
}

}  // namespace quire::cuda
