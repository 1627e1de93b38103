// What the queries of several sequences see of pages that all of them begin with (SharedPrefixes): their rows fill
// tiles together, so that those keys and values are read once for all. A row passes through the same chunks and splits
// as it would alone, and its sequence's own tile goes on from the state that is left here: the same bits.

// The states of shared prefixes in the workspace: rows in the order of the plan's members, KV head by KV head.
struct SharedStates {
  SharedPrefixes prefixes;
  float* data;
  int64_t num_rows;
  int64_t head_dim;

  // That of whole splits, or that of the split which the prefix ends in.
  SoftmaxState of(int64_t kv_head, int64_t row, bool is_last) const {
    const int64_t stride = out_stride_of(head_dim), floats = shared_state_floats(stride);
    float* state = data + (kv_head * num_rows + row) * floats + (is_last ? floats / 2 : 0);
    return {state + stride, state + stride + 1, state};
  }
  void save(int64_t kv_head, int64_t first_row, int count, bool is_last, const TileState& state) const {
    const int64_t stride = out_stride_of(head_dim);
    for (int r = 0; r < count; ++r) {
      const SoftmaxState to = of(kv_head, first_row + r, is_last);
      *to.max = state.max[r];
      *to.sum = state.sum[r];
      for (int64_t i = 0; i < stride; i += Vec::kWidth) Vec::store(to.out + i, Vec::load(state.out + r * stride + i));
    }
  }
  void load(int64_t kv_head, int64_t first_row, int count, bool is_last, TileState& state) const {
    const int64_t stride = out_stride_of(head_dim);
    for (int r = 0; r < count; ++r) {
      const SoftmaxState from = of(kv_head, first_row + r, is_last);
      state.max[r] = *from.max;
      state.sum[r] = *from.sum;
      for (int64_t i = 0; i < stride; i += Vec::kWidth) Vec::store(state.out + r * stride + i, Vec::load(from.out + i));
    }
  }
};

// A tile of rows [first_row, first_row + tile.num_rows) of all that share.
struct SharedTile {
  AttentionTile tile;
  int32_t group;
  int64_t first_row;
};

static int64_t shared_rows(const SharedPrefixes& prefixes, int32_t group) {
  return prefixes.groups[group + 1].first_row - prefixes.groups[group].first_row;
}

template <typename Method>
static void prepare_shared_rows(const PagedAttentionParams& p, const SharedStates& states, const SharedTile& shared,
                                TileScratch& scratch) {
  const int64_t group = p.num_heads / p.kv.num_kv_heads;
  const SharedPrefixes& prefixes = states.prefixes;
  const int32_t* member = prefixes.members + prefixes.groups[shared.group].first_member;
  for (int r = 0; r < shared.tile.num_rows; ++r) {
    const auto num_queries = [&] { return int64_t{p.query_start[*member + 1]} - p.query_start[*member]; };
    while (shared.first_row + r >= prefixes.first_row[*member] + num_queries() * group) ++member;
    const int64_t own = shared.first_row + r - prefixes.first_row[*member];
    prepare_row<Method>(p, r, p.query_start[*member] + own / group, shared.tile.kv_head * group + own % group,
                        p.kv_lens[*member] - num_queries() + own / group, {0, shared.tile.kv_len}, scratch);
  }
}

template <typename Method>
static void attend_shared(const PagedAttentionParams& p, const SharedStates& states, const SharedTile& shared) {
  const AttentionTile& tile = shared.tile;
  TileScratch scratch;
  TileState total, part;
  prepare_shared_rows<Method>(p, states, shared, scratch);
  Method::begin_tile(tile);
  const int64_t last = tile.kv_len / kSplitKeys;
  for (int64_t split = 0; split < last; ++split) {
    attend_split<Method>(p, tile, split, scratch, split == 0 ? total : part);
    if (split > 0) merge_tiles(tile, p.kv.head_dim, total, part);
  }
  attend_split<Method>(p, tile, last, scratch, part);
  Method::end_tile();
  if (last > 0) states.save(tile.kv_head, shared.first_row, tile.num_rows, false, total);
  states.save(tile.kv_head, shared.first_row, tile.num_rows, true, part);
}

// Task t of a launch over all groups, their tiles and the KV heads; false: there are fewer.
static bool find_shared_tile(const PagedAttentionParams& p, const SharedStates& states, int64_t rows_per_tile,
                             int64_t t, SharedTile& shared) {
  const SharedPrefixes& prefixes = states.prefixes;
  int64_t left = t / p.kv.num_kv_heads;
  for (int32_t group = 0; group < *prefixes.num_groups; ++group) {
    const int64_t rows = shared_rows(prefixes, group), num_tiles = ceil_div(rows, rows_per_tile);
    if (left >= num_tiles) {
      left -= num_tiles;
      continue;
    }
    const int32_t first = prefixes.members[prefixes.groups[group].first_member];
    const int64_t begin = left * rows_per_tile;
    shared.group = group;
    shared.first_row = prefixes.groups[group].first_row + begin;
    shared.tile = {};
    shared.tile.kv_len = prefixes.groups[group].num_keys;
    shared.tile.num_rows = static_cast<int>(lesser(rows_per_tile, rows - begin));
    shared.tile.kv_head = t % p.kv.num_kv_heads;
    shared.tile.block_table = p.block_tables + first * p.block_table_stride;
    return true;
  }
  return false;
}
