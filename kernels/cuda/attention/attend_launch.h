// What the launchers of attention share: the bytes of a plan, and one entry for each element type.
#pragma once

#include "cuda/attention/attention.h"
#include "cuda/attention/plan.h"

namespace quire::cuda {

size_t plan_bytes(int64_t max_tiles);
PlanView plan_view(void* plan, int64_t max_tiles);
void launch_plan(const PagedAttentionParams& p, const PlanView& view, int32_t max_slots, int64_t max_state_rows,
                 Stream stream);

// The tensor-core kernel has head_dim 64, 80, 96, 128 and 256. It needs a plan, and room for states in `states`.
constexpr bool has_tensor_kernel(int32_t head_dim) {
  return head_dim == 64 || head_dim == 80 || head_dim == 96 || head_dim == 128 || head_dim == 256;
}
int32_t blocks_per_multiprocessor(int32_t head_dim);
void attend_bf16(const PagedAttentionParams& p, const PlanView& plan, float* states, int32_t num_blocks, Stream stream);
void attend_f16(const PagedAttentionParams& p, const PlanView& plan, float* states, int32_t num_blocks, Stream stream);

// All element types and head sizes, by CUDA cores, one block a row.
constexpr int32_t kMaxPlainHeadDim = 1024;
void attend_plain(const PagedAttentionParams& p, Stream stream);

}  // namespace quire::cuda
