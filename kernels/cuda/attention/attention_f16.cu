// attend_kernel for float16.
#include "cuda/attention/attend_launch.cuh"

namespace quire::cuda {

void attend_f16(const PagedAttentionParams& p, const PlanView& plan, float* states, int32_t num_blocks, Stream stream) {
  attend<__half>(p, plan, states, num_blocks, stream);
}

}  // namespace quire::cuda
