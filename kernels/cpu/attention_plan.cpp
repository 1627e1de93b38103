// Sizes and contracts of paged attention that do not depend on the instruction set.
#include "base/check.h"
#include "cpu/common_kernels.h"
#include "cpu/layout.h"

namespace quire::cpu {
namespace {

// Split states beyond this are not worth their memory; without them splits run one after the other, same bits.
constexpr int64_t kMaxStateBytes = int64_t{64} << 20;

}  // namespace

AttentionShape attention_shape(int32_t num_heads, int32_t num_kv_heads, int32_t head_dim, int most_rows) {
  QUIRE_CHECK(num_kv_heads > 0 && num_heads % num_kv_heads == 0, num_heads, " heads, ", num_kv_heads, " kv heads");
  const int64_t group = num_heads / num_kv_heads;
  const int64_t most = lesser(most_rows, kMaxTileElements / round_up(head_dim, 16));
  return {most >= group ? most / group * group : most};
}

void check_attention(const PagedAttentionParams& p, const AttentionShape& shape) {
  QUIRE_CHECK(p.dtype == p.kv.dtype, "a cache of another type than the model is not supported");
  QUIRE_CHECK(p.dtype == DType::f32 || p.dtype == DType::f16 || p.dtype == DType::bf16);
  QUIRE_CHECK(p.kv.block_size > 0 && p.kv.block_size % kTileTokens == 0, "block_size ", p.kv.block_size);
  QUIRE_CHECK(shape.rows_per_tile >= 1 && p.kv.head_dim <= kMaxHeadDim, "head_dim ", p.kv.head_dim);
  QUIRE_CHECK(p.workspace != nullptr && p.workspace_bytes >= attention_index_bytes(p.num_seqs), p.workspace_bytes);
}

size_t attention_workspace_bytes(int64_t max_tokens, int64_t max_seqs, int64_t max_kv_len, int32_t num_heads,
                                 int32_t head_dim, int num_threads) {
  const size_t index = attention_index_bytes(max_seqs);
  if (num_threads <= 1) return index;
  const int64_t rows = max_tokens * num_heads;
  const int64_t tiles = lesser(2 * int64_t{num_threads}, rows);
  const int64_t splits = ceil_div(max_kv_len, kSplitKeys);
  const int64_t floats = 2 * kMaxTileRows + lesser(kMaxTileRows, rows) * round_up(head_dim, 16);
  return index + static_cast<size_t>(lesser(kMaxStateBytes, tiles * splits * floats * 4));
}

// Tasks are shared out by the launch itself: its arrays are at hand.
size_t attention_plan_bytes(int64_t, int64_t, int32_t) { return 0; }
void plan_attention(const PagedAttentionParams&, Stream) {}

}  // namespace quire::cpu
