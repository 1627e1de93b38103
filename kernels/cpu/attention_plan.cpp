// Sizes and contracts of paged attention that do not depend on the instruction set.
#include <algorithm>

#include "base/check.h"
#include "cpu/common_kernels.h"
#include "cpu/layout.h"

namespace quire::cpu {
namespace {

// Split states beyond this are not worth their memory; without them splits run one after the other, same bits.
constexpr int64_t kMaxStateBytes = int64_t{64} << 20;

// Rows of a sequence that joins others; with more it fills tiles of its own.
constexpr int64_t kMostSharingRows = 16;
constexpr int64_t kFewestSharedKeys = 2 * kChunkKeys;

// What a launch knows of the pages of its sequences.
struct PageTables {
  const PagedAttentionParams& p;

  const int32_t* of(int32_t seq) const { return p.block_tables + seq * p.block_table_stride; }
  int64_t num_queries(int32_t seq) const { return p.query_start[seq + 1] - p.query_start[seq]; }
  // Pages in which every key is seen by all of its queries.
  int64_t num_pages(int32_t seq) const { return (p.kv_lens[seq] - num_queries(seq)) / p.kv.block_size; }
  int64_t num_equal(int32_t a, int32_t b) const {
    const int64_t most = lesser(num_pages(a), num_pages(b));
    return std::mismatch(of(a), of(a) + most, of(b)).first - of(a);
  }
  bool is_before(int32_t a, int32_t b) const {
    const int64_t equal = num_equal(a, b);
    if (equal == num_pages(a) || equal == num_pages(b)) return num_pages(a) < num_pages(b);
    return of(a)[equal] < of(b)[equal];
  }
};

void place_shared_rows(const PagedAttentionParams& p, int32_t num_members, SharedPrefixes& shared) {
  const PageTables tables{p};
  shared.groups[*shared.num_groups] = {num_members, 0, 0};
  int64_t row = 0;
  for (int32_t g = 0; g < *shared.num_groups; ++g) {
    shared.groups[g].first_row = static_cast<int32_t>(row);
    for (int32_t i = shared.groups[g].first_member; i < shared.groups[g + 1].first_member; ++i) {
      shared.first_row[shared.members[i]] = static_cast<int32_t>(row);
      row += tables.num_queries(shared.members[i]) * (p.num_heads / p.kv.num_kv_heads);
    }
  }
  shared.groups[*shared.num_groups].first_row = static_cast<int32_t>(row);
}

// Sequences in the order of their page tables, then each run of neighbours for as long as it saves more keys with one
// more member. Only where all rows of a member see all shared keys, so that those need no mask.
void find_shared_prefixes(const PagedAttentionParams& p) {
  SharedPrefixes shared(p.plan, p.num_seqs);
  *shared.num_groups = 0;
  std::fill_n(shared.num_keys, p.num_seqs, 0);
  if (p.window > 0 || !p.causal) return;
  const PageTables tables{p};
  const int64_t group_heads = p.num_heads / p.kv.num_kv_heads;
  int32_t* order = shared.first_row;  // free until the rows are placed
  int32_t num_candidates = 0;
  for (int32_t s = 0; s < p.num_seqs; ++s) {
    const int64_t rows = tables.num_queries(s) * group_heads;
    if (rows == 0 || rows > kMostSharingRows || tables.num_pages(s) * p.kv.block_size < kFewestSharedKeys) continue;
    order[num_candidates++] = s;
  }
  std::sort(order, order + num_candidates, [&](int32_t a, int32_t b) { return tables.is_before(a, b); });
  int32_t num_members = 0;
  for (int32_t first = 0, last = 0; first < num_candidates; first = last) {
    int64_t keys = 0;
    for (last = first + 1; last < num_candidates; ++last) {
      const int64_t pages = tables.num_equal(order[first], order[last]);
      const int64_t common = pages * p.kv.block_size / kChunkKeys * kChunkKeys;
      const int64_t fewer = keys == 0 ? common : lesser(keys, common);
      if (fewer < kFewestSharedKeys || fewer * (last - first) < keys * (last - first - 1)) break;
      keys = fewer;
    }
    if (keys == 0) continue;
    shared.groups[(*shared.num_groups)++] = {num_members, static_cast<int32_t>(keys), 0};
    for (int32_t i = first; i < last; ++i) {
      shared.members[num_members++] = order[i];
      shared.num_keys[order[i]] = static_cast<int32_t>(keys);
    }
  }
  place_shared_rows(p, num_members, shared);
}

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
  QUIRE_CHECK(p.workspace != nullptr &&
                  p.workspace_bytes >= attention_index_bytes(p.num_seqs) + attention_plan_bytes(0, p.num_seqs, 0),
              p.workspace_bytes);
}

size_t attention_workspace_bytes(int64_t max_tokens, int64_t max_seqs, int64_t max_kv_len, int32_t num_heads,
                                 int32_t head_dim, int num_threads) {
  const size_t index = attention_index_bytes(max_seqs) + attention_plan_bytes(max_tokens, max_seqs, num_heads);
  const int64_t stride = round_up(head_dim, 16);
  const int64_t shared = max_seqs < 2 ? 0 : lesser(max_tokens, max_seqs) * num_heads * shared_state_floats(stride);
  const int64_t rows = max_tokens * num_heads;
  const int64_t tiles = num_threads <= 1 ? 0 : lesser(2 * int64_t{num_threads}, rows);
  const int64_t splits = ceil_div(max_kv_len, kSplitKeys);
  const int64_t floats = 2 * kMaxTileRows + lesser(kMaxTileRows, rows) * stride;
  return index + static_cast<size_t>(lesser(kMaxStateBytes, greater(shared, tiles * splits * floats) * 4));
}

size_t attention_plan_bytes(int64_t, int64_t max_seqs, int32_t) {
  const size_t groups = static_cast<size_t>(max_seqs + 1) * sizeof(SharedPrefixes::Group);
  return (2 * sizeof(int32_t) + groups + 3 * static_cast<size_t>(max_seqs) * sizeof(int32_t) + 63) / 64 * 64;
}

void plan_attention(const PagedAttentionParams& p, Stream) { find_shared_prefixes(p); }

}  // namespace quire::cpu
