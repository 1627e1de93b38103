// attend_kernel for bfloat16.
#include "cuda/attention/attend_launch.cuh"

namespace quire::cuda {

int32_t blocks_per_multiprocessor(int32_t head_dim) {
  return head_dim <= 128 ? AttendShape<128>::kBlocks : AttendShape<256>::kBlocks;
}

void attend_bf16(const PagedAttentionParams& p, const PlanView& plan, float* states, int32_t num_blocks,
                 Stream stream) {
  attend<__nv_bfloat16>(p, plan, states, num_blocks, stream);
}

}  // namespace quire::cuda
