// The launch of attend_kernel for one element type.
#pragma once

#include "base/check.h"
#include "cuda/attention/attend_kernel.cuh"
#include "cuda/attention/attend_launch.h"

namespace quire::cuda {

template <typename T, int kHeadDim>
void launch_attend(const AttendArgs& args, int32_t num_blocks, Stream stream) {
  if (sizeof(AttendShared<kHeadDim>) > simt::max_shared_bytes()) {
    throw NotSupported(str_cat("attention with head_dim ", kHeadDim, " needs ", sizeof(AttendShared<kHeadDim>),
                               " bytes of shared memory a block; this device has ", simt::max_shared_bytes()));
  }
  simt::launch<attend_kernel<T, kHeadDim>>({.grid = dim3(static_cast<unsigned>(num_blocks)),
                                            .block = dim3(kAttendThreads),
                                            .shared_bytes = sizeof(AttendShared<kHeadDim>),
                                            .stream = stream,
                                            .pdl = true},
                                           args);
}

template <typename T>
void attend(const PagedAttentionParams& p, const PlanView& plan, float* states, int32_t num_blocks, Stream stream) {
  AttendArgs args{};
  args.plan = plan;
  args.q = p.q;
  args.q_stride = p.q_stride;
  args.out = p.out;
  args.out_stride = p.out_stride;
  args.k = p.kv.k;
  args.v = p.kv.v;
  args.block_tables = p.block_tables;
  args.block_table_stride = p.block_table_stride;
  args.alibi_slopes = p.alibi_slopes;
  args.relative_bias = p.relative_bias;
  args.sinks = p.sinks;
  args.states = states;
  args.scale = p.scale;
  args.softcap = p.softcap;
  args.window = p.window;
  args.relative_reach = p.relative_reach;
  args.num_heads = p.num_heads;
  args.num_kv_heads = p.kv.num_kv_heads;
  args.block_size = p.kv.block_size;
  args.causal = p.causal;
  switch (p.kv.head_dim) {
    case 64:
      return launch_attend<T, 64>(args, num_blocks, stream);
    case 80:
      return launch_attend<T, 80>(args, num_blocks, stream);
    case 96:
      return launch_attend<T, 96>(args, num_blocks, stream);
    case 128:
      return launch_attend<T, 128>(args, num_blocks, stream);
    case 256:
      return launch_attend<T, 256>(args, num_blocks, stream);
    default:
      QUIRE_CHECK(false, "head_dim ", p.kv.head_dim);
  }
}

}  // namespace quire::cuda
