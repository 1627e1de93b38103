// What each launch moves and computes; see recorded_kernels.h.
//
// The pages of a prefix that several sequences share count for each of them.
#include "device/host/recorded_kernels.h"

#include <algorithm>

#include "device/kernel_spans.h"

namespace quire {
namespace {

// Of one sequence: the keys that any of its queries sees, and how many each of them sees, summed.
struct VisibleKeys {
  double keys = 0.0, pairs = 0.0;
};

VisibleKeys visible_keys(const PagedAttentionParams& params, int32_t num_queries, int32_t kv_len) {
  const auto queries = static_cast<double>(num_queries), keys = static_cast<double>(kv_len);
  if (params.window <= 0) return {keys, queries * keys - (params.causal ? queries * (queries - 1.0) / 2.0 : 0.0)};
  VisibleKeys visible;
  int32_t first = kv_len, last = 0;
  for (int32_t i = 0; i < num_queries; ++i) {
    const int32_t position = kv_len - num_queries + i;
    const int32_t begin = std::max(0, position - params.window + 1);
    const int32_t end = params.causal ? position + 1 : std::min(kv_len, position + params.window);
    first = std::min(first, begin);
    last = std::max(last, end);
    visible.pairs += end - begin;
  }
  visible.keys = std::max(0, last - first);
  return visible;
}

void describe(const PagedAttentionParams& params, Span& span) {
  const double head_dim = params.kv.head_dim;
  VisibleKeys all;
  for (int32_t s = 0; s < params.num_seqs; ++s) {
    const VisibleKeys own = visible_keys(params, params.query_start[s + 1] - params.query_start[s], params.kv_lens[s]);
    all.keys += own.keys;
    all.pairs += own.pairs;
  }
  const double tokens = params.query_start[params.num_seqs];
  span.add("tokens", tokens);
  span.add("seqs", params.num_seqs);
  span.add("keys", all.keys);
  span.add("heads", params.num_heads);
  span.add("kv_heads", params.kv.num_kv_heads);
  span.add("head_dim", head_dim);
  add_dtype(span, params.dtype);
  span.add("bytes", 2.0 * tokens * params.num_heads * head_dim * element_bytes(params.dtype) +
                        2.0 * all.keys * params.kv.num_kv_heads * head_dim * element_bytes(params.kv.dtype));
  span.add("flops", 4.0 * all.pairs * params.num_heads * head_dim);
}

void describe(const MeanRowsParams& params, Span& span) {
  const double rows = params.row_start[params.num_runs] - params.row_start[0];
  const auto runs = static_cast<double>(params.num_runs), dim = static_cast<double>(params.dim);
  span.add("rows", rows);
  span.add("dim", dim);
  span.add("bytes", dim * (4.0 * rows + element_bytes(params.out_dtype) * runs));
}

void describe(const CopyBlocksParams& params, Span& span) {
  double page_bytes = 0.0;
  for (int32_t i = 0; i < params.num_arrays; ++i) page_bytes += static_cast<double>(params.arrays[i].page_bytes);
  span.add("copies", params.num_copies);
  span.add("bytes", 2.0 * page_bytes * params.num_copies);
}

template <auto kLauncher, KernelName kName, typename Params>
void record(const Params& params, Stream stream) {
  const auto& pool = *static_cast<const RecordedPool*>(static_cast<const ThreadPool*>(stream.handle));
  Span span;
  span.category = "kernel";
  span.name = kName.text;
  span.begin_ns = Recorder::now_ns();
  (pool.kernels->*kLauncher)(params, stream);
  span.duration_ns = Recorder::now_ns() - span.begin_ns;
  describe(params, span);
  pool.recorder->add(span);
}

}  // namespace

KernelTable recorded_kernels(const KernelTable& kernels) {
  KernelTable table = kernels;
  table.embedding = record<&KernelTable::embedding, KernelName{"embedding"}>;
  table.norm = record<&KernelTable::norm, KernelName{"norm"}>;
  table.gemm = record<&KernelTable::gemm, KernelName{"gemm"}>;
  table.rope_kv_write = record<&KernelTable::rope_kv_write, KernelName{"rope_kv_write"}>;
  table.paged_attention = record<&KernelTable::paged_attention, KernelName{"paged_attention"}>;
  table.mean_rows = record<&KernelTable::mean_rows, KernelName{"mean_rows"}>;
  table.sample = record<&KernelTable::sample, KernelName{"sample"}>;
  table.copy_blocks = record<&KernelTable::copy_blocks, KernelName{"copy_blocks"}>;
  // The host has no rows, and a plan takes no time: plan_attention, update_rows, prepare_batch and store_sampled stay.
  return table;
}

}  // namespace quire
