// What a backend is: one table of launchers. Everything a kernel needs is in its Params; the stream is passed.
//
// Launchers are asynchronous with respect to the caller where the backend is (cuda) and complete on return on the cpu.
// They do not allocate: workspaces come with the Params. Contracts are checked by the callers (tensor/match.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "params/attention.h"
#include "params/copy_blocks.h"
#include "params/device_rows.h"
#include "params/embedding.h"
#include "params/fill_dummy.h"
#include "params/gemm.h"
#include "params/mean_rows.h"
#include "params/norm.h"
#include "params/prepare_batch.h"
#include "params/reduce_rows.h"
#include "params/rope.h"
#include "params/sampling.h"
#include "params/stream.h"

namespace quire {

struct KernelTable {
  const char* name = "";  // "portable", "avx2", "avx512", later "cuda", "simt"

  // Load time.
  size_t (*packed_weight_bytes)(int64_t rows, int64_t cols, DType dtype, bool gated) = nullptr;
  void (*pack_weight)(const PackWeightParams&, Stream) = nullptr;
  void (*unpack_weight)(const UnpackWeightParams&, Stream) = nullptr;
  void (*fill_dummy)(const FillDummyParams&, Stream) = nullptr;

  // Bytes from a row of activations to the next, at least row_bytes. Null: rows lie without gaps.
  int64_t (*activation_row_bytes)(int64_t row_bytes) = nullptr;

  // forward
  void (*embedding)(const EmbeddingParams&, Stream) = nullptr;
  void (*norm)(const NormParams&, Stream) = nullptr;
  void (*gemm)(const GemmParams&, Stream) = nullptr;
  // What GemmParams::workspace of any row count can use, zero before the first launch. Null: none is ever used.
  size_t (*gemm_workspace_bytes)(int64_t rows, int64_t cols, DType dtype) = nullptr;
  // The same where GemmParams::batch_invariant may be false; at least as many bytes. Null: there is no library to use.
  size_t (*gemm_library_workspace_bytes)(int64_t rows, int64_t cols, DType dtype) = nullptr;
  // What GemmParams::int8_rows takes. Null: this backend has no products with weights of i8.
  size_t (*int8_rows_bytes)(int64_t m, int64_t cols) = nullptr;
  void (*rope_kv_write)(const RopeKvWriteParams&, Stream) = nullptr;
  void (*paged_attention)(const PagedAttentionParams&, Stream) = nullptr;
  // Enough for any launch with at most max_tokens queries of max_seqs sequences.
  size_t (*attention_workspace_bytes)(int64_t max_tokens, int64_t max_seqs, int64_t max_kv_len, int32_t num_heads,
                                      int32_t head_dim, int num_threads) = nullptr;
  // Shares the work of the step's attention out once, for the launches of all layers. 0 bytes: there is nothing to
  // plan, and plan_attention does nothing.
  size_t (*attention_plan_bytes)(int64_t max_tokens, int64_t max_seqs, int32_t num_heads) = nullptr;
  void (*plan_attention)(const PagedAttentionParams&, Stream) = nullptr;

  // Sums over ranks.
  void (*reduce_rows)(const ReduceRowsParams&, Stream) = nullptr;

  // pool
  void (*mean_rows)(const MeanRowsParams&, Stream) = nullptr;

  // sample
  void (*sample)(const SamplingParamsBlock&, Stream) = nullptr;
  size_t (*sampling_workspace_bytes)(int64_t max_rows, int64_t vocab_size, int num_threads) = nullptr;

  // around a step
  void (*update_rows)(const UpdateRowsParams&, Stream) = nullptr;
  void (*prepare_batch)(const PrepareBatchParams&, Stream) = nullptr;
  void (*store_sampled)(const StoreSampledParams&, Stream) = nullptr;
  void (*copy_blocks)(const CopyBlocksParams&, Stream) = nullptr;

  int32_t block_size_multiple = 1;  // a page must hold a multiple of this many tokens
};

}  // namespace quire
