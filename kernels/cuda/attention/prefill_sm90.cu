// Launcher of prefill_sm90.cuh: tensor maps, tile sizes and the six instantiations.
//
//   head_dim   rows x keys   consumers   shared memory
//   64         192 x 128     3            88 KiB
//   128        128 x 128     2           160 KiB
//   256        128 x  80     2           224 KiB
// as FlashAttention-3 found best for causal attention; at 256 the accumulators leave no room for taking turns.
#include "cuda/attention/prefill_sm90.cuh"

#include <numeric>

#include "base/check.h"
#include "cuda/attention/prefill_sm90.h"
#include "cuda/simt/simt.h"

namespace quire::cuda {
namespace {

template <typename Tag>
using Prefill64 = PrefillConfig<Tag, 64, 192, 128, true>;
template <typename Tag>
using Prefill128 = PrefillConfig<Tag, 128, 128, 128, true>;
template <typename Tag>
using Prefill256 = PrefillConfig<Tag, 256, 128, 80, false>;

constexpr int kMaxGroup = 64;

bool is_16_bytes(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// [token, kv_head, head of the group, head_dim], a box of all heads of a group for tokens_per_tile tokens.
simt::TensorMap query_map(const PagedAttentionParams& p, int group, int tokens_per_tile) {
  const auto head_dim = static_cast<uint64_t>(p.kv.head_dim), heads = static_cast<uint64_t>(group);
  return simt::make_tensor_map(
      {.base = p.q,
       .dtype = p.dtype,
       .rank = 4,
       .dims = {head_dim, heads, static_cast<uint64_t>(p.kv.num_kv_heads), static_cast<uint64_t>(p.num_tokens)},
       .strides = {0, head_dim * 2, heads * head_dim * 2, static_cast<uint64_t>(p.q_stride) * 2},
       .box = {kPanelColumns, static_cast<uint32_t>(group), 1, static_cast<uint32_t>(tokens_per_tile)}});
}

// Pages as kv_layout.h has them: rows (page, kv_head, token). How many pages there are only the block tables know.
simt::TensorMap key_map(const PagedAttentionParams& p, const void* base, int box_tokens) {
  const auto head_dim = static_cast<uint64_t>(p.kv.head_dim);
  return simt::make_tensor_map({.base = base,
                                .dtype = p.dtype,
                                .rank = 2,
                                .dims = {head_dim, uint64_t{1} << 31},
                                .strides = {0, head_dim * 2},
                                .box = {kPanelColumns, static_cast<uint32_t>(box_tokens)}});
}

template <typename C>
void launch_prefill(const PagedAttentionParams& p, Stream stream) {
  const int group = p.num_heads / p.kv.num_kv_heads, tokens_per_tile = C::kBlockM / group;
  PrefillArgs args{};
  const int box_tokens = std::gcd(p.kv.block_size, C::kBlockN);
  args.q = query_map(p, group, tokens_per_tile);
  args.k = key_map(p, p.kv.k, box_tokens);
  args.v = key_map(p, p.kv.v, box_tokens);
  args.query_start = p.query_start;
  args.kv_lens = p.kv_lens;
  args.block_tables = p.block_tables;
  args.block_table_stride = p.block_table_stride;
  args.sinks = p.sinks;
  args.out = p.out;
  args.out_stride = p.out_stride;
  args.num_seqs = p.num_seqs;
  args.num_kv_heads = p.kv.num_kv_heads;
  args.group = group;
  args.tokens_per_tile = Divider(tokens_per_tile);
  args.block_size = Divider(p.kv.block_size);
  args.box_tokens = Divider(box_tokens);
  args.window = p.window;
  args.scale_log2 = p.scale * 1.44269504f;
  args.causal = p.causal;
  const int64_t most_tiles = (p.num_tokens / tokens_per_tile + p.num_seqs) * p.kv.num_kv_heads;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(most_tiles, simt::num_multiprocessors()));
  simt::launch<prefill_sm90_kernel<C>>({.grid = dim3(blocks),
                                        .block = dim3(C::kThreads),
                                        .shared_bytes = sizeof(typename C::Shared),
                                        .stream = stream,
                                        .pdl = true},
                                       args);
}

template <typename Tag>
void dispatch_head_dim(const PagedAttentionParams& p, Stream stream) {
  switch (p.kv.head_dim) {
    case 64:
      return launch_prefill<Prefill64<Tag>>(p, stream);
    case 128:
      return launch_prefill<Prefill128<Tag>>(p, stream);
    default:
      return launch_prefill<Prefill256<Tag>>(p, stream);
  }
}

}  // namespace

bool prefill_sm90_takes(const PagedAttentionParams& p) {
  const bool has_shape = (p.kv.head_dim == 64 || p.kv.head_dim == 128 || p.kv.head_dim == 256) &&
                         p.num_heads / p.kv.num_kv_heads <= kMaxGroup && p.kv.block_size % 16 == 0;
  const bool has_type = (p.dtype == DType::bf16 || p.dtype == DType::f16) && p.kv.dtype == p.dtype;
  const bool has_options = p.softcap <= 0.0f && p.alibi_slopes == nullptr && p.relative_bias == nullptr &&
                           p.scale > 0.0f && p.num_tokens > 0 && (p.causal || p.window <= 0);
  const bool is_aligned = is_16_bytes(p.q) && is_16_bytes(p.out) && is_16_bytes(p.kv.k) && is_16_bytes(p.kv.v) &&
                          p.q_stride % 8 == 0 && p.out_stride % 8 == 0;
  return has_shape && has_type && has_options && is_aligned && simt::device_has_wgmma();
}

void prefill_sm90(const PagedAttentionParams& p, Stream stream) {
  QUIRE_CHECK(prefill_sm90_takes(p), "prefill_sm90 does not take head_dim ", p.kv.head_dim, ", softcap ", p.softcap,
              ", q_stride ", p.q_stride, ", num_tokens ", p.num_tokens, p.alibi_slopes != nullptr ? ", ALiBi" : "",
              p.relative_bias != nullptr ? ", relative_bias" : "");
  if (p.num_seqs == 0) return;
  if (p.dtype == DType::bf16) return dispatch_head_dim<simt::bf16_tag>(p, stream);
  dispatch_head_dim<simt::f16_tag>(p, stream);
}

}  // namespace quire::cuda
