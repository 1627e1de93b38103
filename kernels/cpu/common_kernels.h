// The launchers and plans that are the same for every instruction set: packing, sizes, and the decisions of sampling.
//
// Compiled once, for the baseline machine. The vector loops they need come in as function pointers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "params/attention.h"
#include "params/copy_blocks.h"
#include "params/device_rows.h"
#include "params/fill_dummy.h"
#include "params/gemm.h"
#include "params/prepare_batch.h"
#include "params/sampling.h"
#include "params/stream.h"

namespace quire::cpu {

size_t packed_weight_bytes(int64_t rows, int64_t cols, DType dtype, bool gated);
void pack_weight(const PackWeightParams& params, Stream stream);
void unpack_weight(const UnpackWeightParams& params, Stream stream);
// Those of weights of i8, to which the two above pass them on.
size_t packed_int8_bytes(const PackedWeight& weight);
void pack_int8_weight(const PackWeightParams& params, Stream stream);
size_t int8_rows_bytes(int64_t m, int64_t cols);
void fill_dummy(const FillDummyParams& params, Stream stream);

// Rows whose length is a multiple of four lines lie a line further apart: the same columns of some hundred rows would
// otherwise share a few sets of a cache (products with k = 8,192 took twice the time).
constexpr int64_t activation_row_bytes(int64_t row_bytes) {
  constexpr int64_t kLine = 64;
  return row_bytes % (4 * kLine) == 0 ? row_bytes + kLine : row_bytes;
}

void update_rows(const UpdateRowsParams& params, Stream stream);
void prepare_batch(const PrepareBatchParams& params, Stream stream);
void store_sampled(const StoreSampledParams& params, Stream stream);
void copy_blocks(const CopyBlocksParams& params, Stream stream);

// Attention: keys of a chunk share one pass of the online softmax; keys of a split make one partial state. Both are cut
// at fixed positions.
constexpr int kChunkKeys = 64;
constexpr int kSplitKeys = 1024;
constexpr int kMaxTileRows = 64;        // query rows (token, head) that share the loads of a KV head, at most
constexpr int kFewRows = 8;             // a tile of so many waits for memory
constexpr int kMaxTileElements = 8192;  // rows x head_dim of a tile

constexpr int64_t kMaxHeadDim = 1024;

struct AttentionShape {
  int64_t rows_per_tile;
};
AttentionShape attention_shape(int32_t num_heads, int32_t num_kv_heads, int32_t head_dim, int most_rows);
void check_attention(const PagedAttentionParams& params, const AttentionShape& shape);

// Sequences of a launch that begin with the same pages: what their queries see of those is computed together, and each
// sequence goes on from there. A view of a plan.
struct SharedPrefixes {
  struct Group {
    int32_t first_member;  // in members; up to that of the next group
    int32_t num_keys;      // a multiple of kChunkKeys
    int32_t first_row;     // (token, head of a KV head) of all members, in their order
  };
  int32_t* num_groups;
  Group* groups;       // [num_groups + 1], the last one an end
  int32_t* members;    // sequences, group by group
  int32_t* num_keys;   // [num_seqs] those of the sequence's group, 0: it is in none
  int32_t* first_row;  // [num_seqs] of its group's rows and all before, the first that is its own

  SharedPrefixes(void* plan, int64_t num_seqs)
      : num_groups(static_cast<int32_t*>(plan)),
        groups(reinterpret_cast<Group*>(num_groups + 2)),
        members(reinterpret_cast<int32_t*>(groups + num_seqs + 1)),
        num_keys(members + num_seqs),
        first_row(num_keys + num_seqs) {}
};

// Of a row's state over shared keys there are two parts: that of whole splits, and that of the last, begun one.
constexpr int64_t shared_state_floats(int64_t head_dim) { return 2 * (head_dim + 2); }

// How the workspace of attention is used: tile_begin[num_seqs + 1] int32, a plan for a launch that has none, then the
// states of shared prefixes, of (row, kv head), or, when splits of one tile run on several threads, those of head_dim +
// 2 floats for each (tile, kv head, split, row).
constexpr size_t attention_index_bytes(int64_t num_seqs) {
  return (static_cast<size_t>(num_seqs + 1) * sizeof(int32_t) + 63) / 64 * 64;
}
size_t attention_workspace_bytes(int64_t max_tokens, int64_t max_seqs, int64_t max_kv_len, int32_t num_heads,
                                 int32_t head_dim, int num_threads);
size_t attention_plan_bytes(int64_t max_tokens, int64_t max_seqs, int32_t num_heads);
void plan_attention(const PagedAttentionParams& params, Stream stream);

// What sampling asks of an instruction set. x is a row of n logits without NaN, unless said otherwise.
struct SamplingPrimitives {
  // Replaces NaN by -infinity and returns the lowest index of the largest element.
  int32_t (*clean_argmax)(float* x, int32_t n);
  int32_t (*argmax)(const float* x, int32_t n);
  // -infinity where bit i % 32 of mask[i / 32] is 0.
  void (*apply_mask)(float* x, int32_t n, const uint32_t* mask);
  void (*divide)(float* x, int32_t n, float divisor);
  float (*sum_exp)(const float* x, int32_t n, float max);  // sum of exp(x - max)
  int32_t (*count_at_least)(const float* x, int32_t n, float bound);
  // out[i] = largest of the i-th run of kRunLength elements; returns the number of runs.
  int32_t (*run_max)(const float* x, int32_t n, float* out);
  // Ids, ascending, of the elements >= bound; returns how many.
  int32_t (*collect)(const float* x, int32_t n, float bound, int32_t* ids);
  // Argmax of x[i] + noise(i) over the elements above bound, and those equal to it with an id of at most last_tie;
  // lowest id among equals. `start` is one of them, a likely winner.
  int32_t (*gumbel_argmax)(const float* x, int32_t n, float bound, int32_t last_tie, int32_t start, uint64_t seed,
                           uint32_t output_index);
};
constexpr int kRunLength = 64;

void sample_rows(const SamplingParamsBlock& block, const SamplingPrimitives& primitives, Stream stream);
size_t sampling_workspace_bytes(int64_t max_rows, int64_t vocab_size, int num_threads);

}  // namespace quire::cpu
