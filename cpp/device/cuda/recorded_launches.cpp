// What each launch is given to do; see recorded_launches.h.
#include "device/cuda/recorded_launches.h"

#include "cuda/cuda_kernels.h"
#include "device/cuda/stream_spans.h"
#include "device/kernel_spans.h"

namespace quire {
namespace {

void describe(const PagedAttentionParams& params, Span& span) {
  span.add("tokens", static_cast<double>(params.num_tokens));
  span.add("seqs", params.num_seqs);
  span.add("max_kv_len", params.max_kv_len);
  span.add("heads", params.num_heads);
  span.add("kv_heads", params.kv.num_kv_heads);
  span.add("head_dim", params.kv.head_dim);
  add_dtype(span, params.dtype);
}

void describe(const MeanRowsParams& params, Span& span) {
  span.add("runs", static_cast<double>(params.num_runs));
  span.add("dim", static_cast<double>(params.dim));
}

void describe(const ReduceRowsParams& params, Span& span) {
  const auto rows = static_cast<double>(params.rows), dim = static_cast<double>(params.dim);
  span.add("rows", rows);
  span.add("dim", dim);
  span.add("ranks", params.num_partials);
  const double num_floats = params.num_partials + params.num_outs + (params.base != nullptr ? 1.0 : 0.0);
  const double normed = params.has_norm ? params.num_outs * element_bytes(params.normed_dtype) : 0.0;
  span.add("bytes", rows * dim * (4.0 * num_floats + normed));
}

void describe(const CopyBlocksParams& params, Span& span) { span.add("copies", params.num_copies); }

void describe(const UpdateRowsParams& params, Span& span) {
  span.add("updates", params.num_updates);
  span.add("sampling", params.num_sampling);
}

void describe(const PrepareBatchParams& params, Span& span) { span.add("seqs", params.max_seqs); }

void describe(const StoreSampledParams& params, Span& span) { span.add("rows", params.num_samples); }

template <auto kLauncher, KernelName kName, typename Params>
void record(const Params& params, Stream stream) {
  const auto launch = cuda::kernels().*kLauncher;
  StreamSpans* const spans = StreamSpans::of(stream);
  if (spans == nullptr) return launch(params, stream);
  Span span;
  span.category = "kernel";
  span.name = kName.text;
  describe(params, span);
  const StreamSpanScope scope(*spans, span);
  launch(params, stream);
}

}  // namespace

KernelTable recorded_launches() {
  KernelTable table = cuda::kernels();
  table.embedding = record<&KernelTable::embedding, KernelName{"embedding"}>;
  table.norm = record<&KernelTable::norm, KernelName{"norm"}>;
  table.gemm = record<&KernelTable::gemm, KernelName{"gemm"}>;
  table.rope_kv_write = record<&KernelTable::rope_kv_write, KernelName{"rope_kv_write"}>;
  table.paged_attention = record<&KernelTable::paged_attention, KernelName{"paged_attention"}>;
  table.plan_attention = record<&KernelTable::plan_attention, KernelName{"plan_attention"}>;
  table.reduce_rows = record<&KernelTable::reduce_rows, KernelName{"reduce_rows"}>;
  table.mean_rows = record<&KernelTable::mean_rows, KernelName{"mean_rows"}>;
  table.sample = record<&KernelTable::sample, KernelName{"sample"}>;
  table.update_rows = record<&KernelTable::update_rows, KernelName{"update_rows"}>;
  table.prepare_batch = record<&KernelTable::prepare_batch, KernelName{"prepare_batch"}>;
  table.store_sampled = record<&KernelTable::store_sampled, KernelName{"store_sampled"}>;
  table.copy_blocks = record<&KernelTable::copy_blocks, KernelName{"copy_blocks"}>;
  return table;  // what is done at load stays
}

}  // namespace quire
