// The launcher of rope_kv_write; see rope_kv_write.cuh.
#include "cuda/layer/rope_kv_write.cuh"

#include "base/check.h"
#include "cuda/layer/layer.h"

namespace quire::cuda {
namespace {

// Whether heads fall into runs of kVec elements, of one alignment, that are rotated as wholes or with each other.
bool runs_of(const RopeKvWriteParams& p, int vec) {
  const int rotated_runs = p.interleaved ? vec : 2 * vec;
  if (p.kv.head_dim % vec != 0 || p.rotary_dim % rotated_runs != 0 || p.qkv_stride % vec != 0) return false;
  for (const void* pointer :
       {static_cast<const void*>(p.qkv), static_cast<const void*>(p.kv.k), static_cast<const void*>(p.kv.v),
        static_cast<const void*>(p.cos_sin), static_cast<const void*>(p.q_norm), static_cast<const void*>(p.k_norm)}) {
    if (!is_aligned(pointer, 16)) return false;
  }
  return true;
}

template <typename T, int kVec>
void launch_rope(const RopeKvWriteParams& p, Stream stream) {
  RopeArgs args{p};
  args.first_head = p.rotary_dim == 0 && p.q_norm == nullptr ? p.num_heads : 0;
  args.num_units = (p.kv.head_dim + 2 * kVec - 1) / (2 * kVec);
  while (args.lanes_per_head < args.num_units && args.lanes_per_head < 32) args.lanes_per_head *= 2;
  const int heads = p.num_heads + 2 * p.kv.num_kv_heads - args.first_head;
  const int heads_per_block = kRopeThreads / args.lanes_per_head;
  const dim3 grid(static_cast<unsigned>(p.num_tokens),
                  static_cast<unsigned>((heads + heads_per_block - 1) / heads_per_block));
  simt::launch<rope_kv_write_kernel<T, kVec>>(
      {.grid = grid, .block = dim3(kRopeThreads), .stream = stream, .pdl = true}, args);
}

template <typename T>
void dispatch_rope(const RopeKvWriteParams& p, Stream stream) {
  constexpr int kVec = 16 / sizeof(T);
  if (runs_of(p, kVec)) return launch_rope<T, kVec>(p, stream);
  launch_rope<T, 1>(p, stream);
}

}  // namespace

void rope_kv_write(const RopeKvWriteParams& p, Stream stream) {
  if (p.dtype != p.kv.dtype) throw NotSupported("rope_kv_write: a cache of another type than the model");
  QUIRE_CHECK(p.kv.block_size > 0 && p.kv.block_size % kKvSliceTokens == 0, "block_size ", p.kv.block_size);
  QUIRE_CHECK(p.num_heads > 0 && p.kv.num_kv_heads > 0 && p.kv.head_dim > 0);
  QUIRE_CHECK(p.rotary_dim >= 0 && p.rotary_dim % 2 == 0 && p.rotary_dim <= p.kv.head_dim, "rotary_dim ", p.rotary_dim);
  QUIRE_CHECK(p.rotary_dim == 0 || (p.cos_sin != nullptr && p.positions != nullptr));
  QUIRE_CHECK(p.num_tokens >= 0 && p.num_tokens <= INT32_MAX, "num_tokens ", p.num_tokens);
  if (p.num_tokens == 0) return;
  switch (p.dtype) {
    case DType::f32:
      return dispatch_rope<float>(p, stream);
    case DType::bf16:
      return dispatch_rope<__nv_bfloat16>(p, stream);
    case DType::f16:
      return dispatch_rope<__half>(p, stream);
    default:
      throw NotSupported(str_cat("rope_kv_write of ", dtype_name(p.dtype)));
  }
}

}  // namespace quire::cuda
