// The launchers of the family: contracts, the shares of the workspace, and which kernel a launch gets. The kernels do
// not give the same bits, so the choice looks at types and head sizes only, and at the batch (Hopper's prefill) only
// where the caller gives invariance up.
#include "base/check.h"
#include "cuda/attention/attend_launch.h"
#include "cuda/attention/prefill_sm90.h"
#include "cuda/simt/simt.h"

namespace quire::cuda {
namespace {

// States beyond this are not worth their memory; without room nothing is shared among blocks, and the bits are the
// same.
constexpr int64_t kMaxStateBytes = int64_t{64} << 20;

bool uses_tensor_cores(const PagedAttentionParams& p) {
  return p.dtype != DType::f32 && has_tensor_kernel(p.kv.head_dim);
}

int64_t state_bytes(int32_t head_dim) { return (int64_t{head_dim} + 4) * 4; }

int64_t max_tiles(const PagedAttentionParams& p) { return max_row_tiles(p.num_tokens, p.num_seqs, p.num_heads); }

// A plan in the workspace lies at its front, the states behind it.
size_t states_offset(const PagedAttentionParams& p) { return p.plan != nullptr ? 0 : plan_bytes(max_tiles(p)); }

int32_t num_slots(const PagedAttentionParams& p) {
  const int32_t slots = simt::num_multiprocessors() * blocks_per_multiprocessor(p.kv.head_dim);
  return slots < kMaxSlots ? slots : kMaxSlots;
}

void check(const PagedAttentionParams& p) {
  QUIRE_CHECK(p.dtype == p.kv.dtype, "a cache of another type than the model is not supported");
  QUIRE_CHECK(p.dtype == DType::f32 || p.dtype == DType::f16 || p.dtype == DType::bf16);
  QUIRE_CHECK(p.kv.num_kv_heads > 0 && p.num_heads % p.kv.num_kv_heads == 0, p.num_heads, " heads, ", p.kv.num_kv_heads,
              " kv heads");
  QUIRE_CHECK(p.kv.block_size > 0 && p.kv.block_size % kKvSliceTokens == 0, "block_size ", p.kv.block_size);
  QUIRE_CHECK(p.kv.head_dim > 0 && p.kv.head_dim <= kMaxPlainHeadDim, "head_dim ", p.kv.head_dim);
  QUIRE_CHECK(p.num_tokens >= 0 && p.num_seqs >= 0, p.num_tokens, " tokens of ", p.num_seqs, " sequences");
  QUIRE_CHECK(p.relative_bias == nullptr || p.relative_reach >= 0, "relative_reach ", p.relative_reach);
  if (!uses_tensor_cores(p)) return;
  QUIRE_CHECK(p.q_stride % 4 == 0 && p.out_stride % 4 == 0, "strides ", p.q_stride, ", ", p.out_stride);
  QUIRE_CHECK(reinterpret_cast<uintptr_t>(p.q) % 8 == 0 && reinterpret_cast<uintptr_t>(p.out) % 8 == 0);
  QUIRE_CHECK(p.workspace_bytes >= states_offset(p), "workspace of ", p.workspace_bytes, " bytes");
  if (p.plan != nullptr) QUIRE_CHECK(p.plan_bytes >= plan_bytes(max_tiles(p)), "plan of ", p.plan_bytes, " bytes");
}

void make_plan(const PagedAttentionParams& p, void* plan, Stream stream) {
  const auto bytes = static_cast<int64_t>(p.workspace_bytes - states_offset(p));
  launch_plan(p, plan_view(plan, max_tiles(p)), num_slots(p), bytes / state_bytes(p.kv.head_dim), stream);
}

}  // namespace

size_t attention_plan_bytes(int64_t max_tokens, int64_t max_seqs, int32_t num_heads) {
  return plan_bytes(max_row_tiles(max_tokens, max_seqs, num_heads));
}

// Every row of every split leaves a state at most once.
size_t attention_workspace_bytes(int64_t max_tokens, int64_t max_seqs, int64_t max_kv_len, int32_t num_heads,
                                 int32_t head_dim, int /*num_threads*/) {
  const int64_t splits = (max_kv_len + kSplitKeys - 1) / kSplitKeys;
  const int64_t bytes = splits > 1 ? max_tokens * num_heads * splits * state_bytes(head_dim) : 0;
  return attention_plan_bytes(max_tokens, max_seqs, num_heads) +
         static_cast<size_t>(bytes < kMaxStateBytes ? bytes : kMaxStateBytes);
}

void plan_attention(const PagedAttentionParams& p, Stream stream) {
  check(p);
  if (p.num_tokens == 0 || p.num_seqs == 0 || !uses_tensor_cores(p)) return;
  QUIRE_CHECK(p.plan != nullptr, "no memory for the plan");
  make_plan(p, p.plan, stream);
}

void paged_attention(const PagedAttentionParams& p, Stream stream) {
  check(p);
  if (p.num_tokens == 0 || p.num_seqs == 0) return;
  if (!uses_tensor_cores(p)) return attend_plain(p, stream);
  if (!p.batch_invariant && p.num_tokens > p.num_seqs && prefill_sm90_takes(p)) return prefill_sm90(p, stream);
  void* const plan = p.plan != nullptr ? p.plan : p.workspace;
  if (p.plan == nullptr) make_plan(p, plan, stream);
  auto* const states = reinterpret_cast<float*>(static_cast<uint8_t*>(p.workspace) + states_offset(p));
  const PlanView view = plan_view(plan, max_tiles(p));
  const auto launch = p.dtype == DType::bf16 ? attend_bf16 : attend_f16;
  launch(p, view, states, num_slots(p), stream);
}

}  // namespace quire::cuda
