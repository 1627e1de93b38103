// Sizes and the launch of the plan.
#include "cuda/attention/attend_launch.h"
#include "cuda/attention/plan.cuh"

namespace quire::cuda {
namespace {

constexpr size_t align_up(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

size_t plan_bytes(int64_t max_tiles) {
  return sizeof(PlanHeader) + align_up((kMaxSlots + 1) * sizeof(Slot)) + align_up(kMaxSlots * sizeof(int32_t)) +
         align_up(static_cast<size_t>(max_tiles) * sizeof(RowTile)) +
         align_up(static_cast<size_t>(max_tiles + 1) * sizeof(int32_t));
}

PlanView plan_view(void* plan, int64_t max_tiles) {
  auto* at = static_cast<uint8_t*>(plan);
  const auto take = [&](size_t bytes) {
    auto* const taken = at;
    at += align_up(bytes);
    return static_cast<void*>(taken);
  };
  PlanView view;
  view.header = static_cast<PlanHeader*>(take(sizeof(PlanHeader)));
  view.slots = static_cast<Slot*>(take((kMaxSlots + 1) * sizeof(Slot)));
  view.arrivals = static_cast<int32_t*>(take(kMaxSlots * sizeof(int32_t)));
  view.tiles = static_cast<RowTile*>(take(static_cast<size_t>(max_tiles) * sizeof(RowTile)));
  view.first_unit = static_cast<int32_t*>(take(static_cast<size_t>(max_tiles + 1) * sizeof(int32_t)));
  return view;
}

void launch_plan(const PagedAttentionParams& p, const PlanView& view, int32_t max_slots, int64_t max_state_rows,
                 Stream stream) {
  PlanArgs args{};
  args.plan = view;
  args.query_start = p.query_start;
  args.kv_lens = p.kv_lens;
  args.num_seqs = p.num_seqs;
  args.group = p.num_heads / p.kv.num_kv_heads;
  args.num_kv_heads = p.kv.num_kv_heads;
  args.tile_rows = tile_rows(p.kv.head_dim);
  args.window = p.window;
  args.causal = p.causal;
  args.max_slots = max_slots;
  args.max_state_rows = max_state_rows;
  simt::launch<plan_kernel>(
      {.grid = dim3(1), .block = dim3(kPlanThreads), .shared_bytes = sizeof(PlanShared), .stream = stream, .pdl = true},
      args);
}

}  // namespace quire::cuda
