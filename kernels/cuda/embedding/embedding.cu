// The launch of the embedding gather.
#include "cuda/embedding/embedding.h"

#include "base/check.h"
#include "cuda/embedding/embedding.cuh"
#include "cuda/gemm/weight_layout.h"

namespace quire::cuda {
namespace {

constexpr int64_t kMaxTokensALaunch = int64_t{1} << 30;

template <typename Element>
void launch_embedding(const EmbeddingArgs& args, int64_t num_tokens, Stream stream) {
  const auto pieces = static_cast<uint32_t>(ceil_div(args.dim, kEmbeddingThreads * kEmbeddingElements));
  simt::launch<embedding_kernel<Element>>(simt::LaunchConfig{.grid = dim3(static_cast<uint32_t>(num_tokens), pieces),
                                                             .block = dim3(kEmbeddingThreads),
                                                             .shared_bytes = 0,
                                                             .stream = stream,
                                                             .pdl = true},
                                          args);
}

}  // namespace

void embedding(const EmbeddingParams& p, Stream stream) {
  QUIRE_CHECK(p.out_dtype == DType::f32 || p.out_dtype == p.table.dtype);
  QUIRE_CHECK(!p.accumulate || p.out_dtype == DType::f32);
  QUIRE_CHECK(!p.table.gated);
  QUIRE_CHECK(p.position_table.data == nullptr ||
              (p.position_table.dtype == p.table.dtype && p.position_table.cols == p.table.cols));
  QUIRE_CHECK(p.num_tokens < kMaxTokensALaunch && p.table.cols < INT32_MAX / 2);
  if (p.num_tokens <= 0 || p.table.cols <= 0) return;
  EmbeddingArgs args = {};
  args.token_ids = p.token_ids;
  args.positions = p.positions;
  args.table = p.table.data;
  args.position_table = p.position_table.data;
  args.out = p.out;
  args.out_stride = p.out_stride;
  args.token_id_offset = p.token_id_offset;
  args.position_offset = p.position_offset;
  args.dim = static_cast<int32_t>(p.table.cols);
  args.padded_dim = static_cast<int32_t>(padded_cols(p.table.cols));
  args.scale = p.scale;
  args.part_rows = p.is_part ? static_cast<int32_t>(p.table.rows) : 0;
  args.accumulate = p.accumulate;
  args.rounds = p.out_dtype != DType::f32;
  const int64_t row_bytes = p.out_stride * static_cast<int64_t>(dtype_bytes(p.out_dtype));
  args.out_aligned = reinterpret_cast<uintptr_t>(p.out) % 16 == 0 && row_bytes % 16 == 0;
  switch (p.table.dtype) {
    case DType::bf16:
      return launch_embedding<__nv_bfloat16>(args, p.num_tokens, stream);
    case DType::f16:
      return launch_embedding<__half>(args, p.num_tokens, stream);
    case DType::f32:
      return launch_embedding<float>(args, p.num_tokens, stream);
    default:
      throw NotSupported(
          str_cat("embedding tables of ", dtype_name(p.table.dtype), " on CUDA; use bfloat16, float16 or float32"));
  }
}

}  // namespace quire::cuda
