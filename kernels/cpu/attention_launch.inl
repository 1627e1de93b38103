// How a launch is cut into tiles and tasks. A tile's loop is in attention_tile.inl.

constexpr int64_t kTurnKeys = 256;  // of a head, then the next one takes its turn

// How a launch is cut. Tasks are (tile, kv head), or with splits (split, tile, some kv heads), then a merge of each
// tile.
struct AttentionPlan {
  const int32_t* tile_begin;  // [num_seqs + 1]
  int64_t rows_per_tile;
  int64_t num_splits;      // of the longest sequence
  int64_t heads_per_task;  // of splits
  bool splits_in_tasks;
  float* states;  // of (tile, kv head, split): max[rows], sum[rows], out[rows][stride]
  int64_t state_floats;
  SharedStates shared;
  int64_t num_shared_tiles;  // 0: no sequences share pages, or they go alone
};

static AttentionTile find_tile(const PagedAttentionParams& p, const AttentionPlan& plan, int64_t tile_id,
                               int64_t kv_head) {
  int64_t low = 0, high = p.num_seqs;  // the last sequence whose tile_begin is <= tile_id
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (plan.tile_begin[middle] <= tile_id ? low : high) = middle;
  }
  const int64_t group = p.num_heads / p.kv.num_kv_heads;
  const int64_t num_queries = p.query_start[low + 1] - p.query_start[low];
  AttentionTile tile;
  tile.token_begin = p.query_start[low];
  tile.kv_len = p.kv_lens[low];
  tile.first_position = tile.kv_len - num_queries;
  tile.row_begin = (tile_id - plan.tile_begin[low]) * plan.rows_per_tile;
  tile.num_rows = static_cast<int>(lesser(plan.rows_per_tile, num_queries * group - tile.row_begin));
  tile.kv_head = kv_head;
  tile.block_table = p.block_tables + low * p.block_table_stride;
  tile.seq = static_cast<int32_t>(low);
  return tile;
}

template <typename Method>
static void attend_tile(const PagedAttentionParams& p, const AttentionPlan& plan, const AttentionTile& tile) {
  TileScratch scratch;
  TileState total, part;
  prepare_rows<Method>(p, tile, scratch);
  int64_t first = scratch.visible[0].begin / kSplitKeys;  // rows ascend in position
  const int64_t last = ceil_div(scratch.visible[tile.num_rows - 1].end, kSplitKeys);
  Method::begin_tile(tile);
  const int64_t shared_keys = plan.num_shared_tiles > 0 ? plan.shared.prefixes.num_keys[tile.seq] : 0;
  if (shared_keys > 0) {
    const int64_t row = plan.shared.prefixes.first_row[tile.seq] + tile.row_begin;
    first = shared_keys / kSplitKeys;
    if (first > 0) plan.shared.load(tile.kv_head, row, tile.num_rows, false, total);
    TileState& state = first > 0 ? part : total;
    plan.shared.load(tile.kv_head, row, tile.num_rows, true, state);
    attend_keys<Method>(p, tile, {shared_keys, (first + 1) * kSplitKeys}, scratch, state);
    if (first > 0) merge_tiles(tile, p.kv.head_dim, total, part);
  } else {
    attend_split<Method>(p, tile, first, scratch, total);
  }
  for (int64_t split = first + 1; split < last; ++split) {
    attend_split<Method>(p, tile, split, scratch, part);
    merge_tiles(tile, p.kv.head_dim, total, part);
  }
  Method::end_tile();
  write_rows<typename Method::Element>(p, tile, total);
}

// The state of a tile over one split lies in the workspace from the beginning. Heads take turns, because their keys are
// neighbours in memory.
template <typename Method>
static void attend_split_task(const PagedAttentionParams& p, const AttentionPlan& plan, int64_t task) {
  const int64_t num_tiles = plan.tile_begin[p.num_seqs], num_parts = p.kv.num_kv_heads / plan.heads_per_task;
  const int64_t tile_id = task / num_parts % num_tiles, split = task / num_parts / num_tiles;
  const int64_t first_head = task % num_parts * plan.heads_per_task;
  const auto state_of = [&](int64_t head) -> TileState& {
    const int64_t index = (tile_id * p.kv.num_kv_heads + head) * plan.num_splits + split;
    return *reinterpret_cast<TileState*>(plan.states + index * plan.state_floats);
  };
  const int64_t split_end = lesser((split + 1) * kSplitKeys, find_tile(p, plan, tile_id, 0).kv_len);
  const int64_t turn_keys = plan.heads_per_task > 1 ? kTurnKeys : kSplitKeys;
  TileScratch scratch;
  for (int64_t begin = split * kSplitKeys; begin < split_end; begin += turn_keys) {
    for (int64_t head = first_head; head < first_head + plan.heads_per_task; ++head) {
      const AttentionTile tile = find_tile(p, plan, tile_id, head);
      prepare_rows<Method>(p, tile, scratch);
      if (begin == split * kSplitKeys) clear_states(tile, p.kv.head_dim, state_of(head));
      Method::begin_tile(tile);
      attend_keys<Method>(p, tile, {begin, begin + turn_keys}, scratch, state_of(head));
      Method::end_tile();
    }
  }
}

template <typename T>
static void merge_splits_task(const PagedAttentionParams& p, const AttentionPlan& plan, int64_t tile_task) {
  const AttentionTile tile = find_tile(p, plan, tile_task / p.kv.num_kv_heads, tile_task % p.kv.num_kv_heads);
  const int64_t stride = out_stride_of(p.kv.head_dim);
  TileState total;
  for (int r = 0; r < tile.num_rows; ++r) total.sum[r] = 0.0f;
  for (int64_t i = 0; i < tile.num_rows * stride; i += Vec::kWidth) Vec::store(total.out + i, Vec::zero());
  for (int64_t split = 0; split < ceil_div(tile.kv_len, kSplitKeys); ++split) {
    float* saved = plan.states + (tile_task * plan.num_splits + split) * plan.state_floats;
    for (int r = 0; r < tile.num_rows; ++r) {
      merge_states({&total.max[r], &total.sum[r], total.out + r * stride},
                   {saved + r, saved + kMaxTileRows + r, saved + 2 * kMaxTileRows + r * stride}, p.kv.head_dim);
    }
  }
  write_rows<T>(p, tile, total);
}

template <typename Method>
static void run_attention(const PagedAttentionParams& p, const AttentionPlan& plan, double estimate_ns, Stream stream) {
  const int64_t num_tiles = int64_t{plan.tile_begin[p.num_seqs]} * p.kv.num_kv_heads;
  if (plan.splits_in_tasks) {
    for_each_task(stream, num_tiles / plan.heads_per_task * plan.num_splits, estimate_ns,
                  [&](int64_t task) { attend_split_task<Method>(p, plan, task); });
    for_each_task(stream, num_tiles, estimate_ns,
                  [&](int64_t task) { merge_splits_task<typename Method::Element>(p, plan, task); });
    return;
  }
  for_each_task(stream, plan.num_shared_tiles * p.kv.num_kv_heads, estimate_ns, [&](int64_t task) {
    SharedTile shared;
    if (find_shared_tile(p, plan.shared, plan.rows_per_tile, task, shared))
      attend_shared<Method>(p, plan.shared, shared);
  });
  for_each_task(stream, num_tiles, estimate_ns, [&](int64_t task) {
    attend_tile<Method>(p, plan, find_tile(p, plan, task / p.kv.num_kv_heads, task % p.kv.num_kv_heads));
  });
}

// Tiles of sequences, splits of the longest one, and shared prefixes as the launch's plan has them or, without one, as
// they are found now. Returns the multiplications of a head element, about.
static double plan_launch(PagedAttentionParams& p, int64_t rows_per_tile, int num_threads, AttentionPlan& plan) {
  int32_t* tile_begin = static_cast<int32_t*>(p.workspace);
  const int64_t group = p.num_heads / p.kv.num_kv_heads;
  int64_t max_kv_len = 1, max_rows = 1;
  double work = 0.0;
  tile_begin[0] = 0;
  for (int32_t s = 0; s < p.num_seqs; ++s) {
    const int64_t rows = (p.query_start[s + 1] - p.query_start[s]) * group;
    tile_begin[s + 1] = tile_begin[s] + static_cast<int32_t>(ceil_div(rows, rows_per_tile));
    if (rows > 0) max_kv_len = greater(max_kv_len, p.kv_lens[s]);
    max_rows = greater(max_rows, rows);
    work += static_cast<double>(greater(rows, 4)) * p.kv_lens[s];
  }
  const size_t index_bytes = attention_index_bytes(p.num_seqs), plan_bytes = attention_plan_bytes(0, p.num_seqs, 0);
  char* free = static_cast<char*>(p.workspace) + index_bytes;
  if (p.plan == nullptr) {
    p.plan = free;
    plan_attention(p, {});
  }
  plan.tile_begin = tile_begin;
  plan.rows_per_tile = rows_per_tile;
  plan.num_splits = ceil_div(max_kv_len, kSplitKeys);
  plan.state_floats = 2 * kMaxTileRows + lesser(max_rows, rows_per_tile) * out_stride_of(p.kv.head_dim);
  plan.states = reinterpret_cast<float*>(free + plan_bytes);
  const auto available = static_cast<int64_t>((p.workspace_bytes - index_bytes - plan_bytes) / sizeof(float));
  const int64_t tiles = int64_t{tile_begin[p.num_seqs]} * p.kv.num_kv_heads;
  plan.shared = {SharedPrefixes(p.plan, p.num_seqs), plan.states, 0, p.kv.head_dim};
  // For want of tiles, or because the keys of a head alone lie apart.
  const bool is_short = num_threads > 1 && tiles < 2 * num_threads;
  const bool waits = max_rows <= kFewRows && p.kv.num_kv_heads > 1;
  const bool reads_far = waits && *plan.shared.prefixes.num_groups == 0;
  plan.splits_in_tasks =
      plan.num_splits > 1 && (is_short || reads_far) && tiles * plan.num_splits * plan.state_floats <= available;
  const bool is_enough = plan.num_splits * tile_begin[p.num_seqs] >= 4 * num_threads;
  plan.heads_per_task = waits && is_enough ? p.kv.num_kv_heads : 1;
  plan.num_shared_tiles = 0;
  for (int32_t g = 0; g < *plan.shared.prefixes.num_groups && !plan.splits_in_tasks; ++g) {
    const int64_t rows = shared_rows(plan.shared.prefixes, g);
    plan.shared.num_rows += rows;
    plan.num_shared_tiles += ceil_div(rows, rows_per_tile);
  }
  const int64_t needed = plan.shared.num_rows * p.kv.num_kv_heads * shared_state_floats(out_stride_of(p.kv.head_dim));
  if (needed > available) plan.num_shared_tiles = 0;
  return work;
}

// OfBf16: how products of bf16 are computed.
template <typename OfBf16>
static void paged_attention_with(PagedAttentionParams p, Stream stream) {
  if (p.num_seqs == 0) return;
  const AttentionShape shape = attention_shape(p.num_heads, p.kv.num_kv_heads, p.kv.head_dim, OfBf16::kMaxRows);
  check_attention(p, shape);
  AttentionPlan plan{nullptr, 0, 0, 1, false, nullptr, 0, {SharedPrefixes(nullptr, 0), nullptr, 0, 0}, 0};
  const double work = plan_launch(p, shape.rows_per_tile, num_threads_of(stream), plan);
  const double estimate_ns = work * p.kv.num_kv_heads * p.kv.head_dim * 0.02;
  switch (p.dtype) {
    case DType::bf16:
      return run_attention<OfBf16>(p, plan, estimate_ns, stream);
    case DType::f16:
      return run_attention<VectorAttention<F16>>(p, plan, estimate_ns, stream);
    default:
      return run_attention<VectorAttention<float>>(p, plan, estimate_ns, stream);
  }
}

static void paged_attention(const PagedAttentionParams& p, Stream stream) {
  paged_attention_with<VectorAttention<Bf16>>(p, stream);
}
