// Sampling: four launches, five with logprobs, ten with processed ones, whatever the rows of the batch ask for.
//
//   scan      (slices, rows)  maximum, edits, mass; the draw of rows without filters      reads every logit once
//   plan      (rows)          ends decided rows; bounds for the others                    reads 1/500 of the bytes
//   select    (slices, rows)  lists what reaches the bound; draws when the list is short  reads filtered rows again
//   draw      (slices, rows)  for flat rows alone: draws around the cut                   reads those a third time
//   logprobs  (slices, rows)  rank and most likely tokens, of rows that want them         reads those again
// The token is argmax(logit + noise) over what min_p, top_k and top_p leave: the order of params/sampling.h.
//   process   (slices, rows)  processed logprobs alone: logits to what was drawn from     reads and writes once; then
//                             all launches again, of rows whose token is given, to report its logprobs
//
// A greedy row, or one drawn without filters, is read once; blocks of later launches that have nothing to do for their
// row end after reading its state. No sort of a row, no softmax in memory, no wish is looked at on the host.
//
// Bytes: 128 rows of 131,072 logits are 67 MB, 16 us at 4.3 TB/s; prediction on an H200 22 us greedy, 38 us filtered
// with few candidates, 55 us flat (three reads, a part of each later one from L2). Flops: Philox and a bound of the
// noise are about 30 instructions for a token that cannot be excluded by its logit, 18 us when none can (hidden behind
// the read but for a few us); the noise itself is computed for a few tokens a slice.
//
// Exactness. Slices are of fixed size, float sums are formed in fixed orders, all other sums are of integers, and keys
// of tokens differ: a row's result does not depend on the batch or the order of blocks. Equal to the CPU backend on
// equal logits, with two exceptions in theory: top_p compares masses, whose last bits differ from the CPU's (2^-40 of
// the largest token's mass against float and double sums), so a token whose mass begins within about 1e-7 of the cut
// may fall on the other side; and log(min_p) is rounded from double precision, the CPU's may be one bit off.
#include "base/check.h"
#include "cuda/sampling/draw.cuh"
#include "cuda/sampling/logprobs.cuh"
#include "cuda/sampling/plan.cuh"
#include "cuda/sampling/process.cuh"
#include "cuda/sampling/sampling.h"
#include "cuda/sampling/scan.cuh"
#include "cuda/sampling/select.cuh"

namespace quire::cuda {
namespace {

constexpr int64_t kMaxRows = 65535;  // gridDim.y

int64_t num_slices_of(int64_t vocab_size) { return (vocab_size + kSliceTokens - 1) / kSliceTokens; }

// Lays the arrays of SamplingArgs out from `next` on; with nullptr it only measures.
class WorkspaceLayout {
 public:
  explicit WorkspaceLayout(void* begin) : begin_(static_cast<char*>(begin)) {}

  template <typename T>
  T* take(int64_t count) {
    T* const array = begin_ == nullptr ? nullptr : reinterpret_cast<T*>(begin_ + offset_);
    offset_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return array;
  }
  size_t bytes() const { return offset_; }

 private:
  char* begin_;
  size_t offset_ = 0;
};

size_t lay_out(void* workspace, int64_t rows, int64_t vocab_size, SamplingArgs* args) {
  WorkspaceLayout layout(workspace);
  const int64_t slices = rows * num_slices_of(vocab_size);
  args->states = layout.take<RowState>(rows);
  args->stats = layout.take<SliceStats>(slices);
  args->run_max = layout.take<float>(slices * kSamplingWarps);
  args->raw_run_max = layout.take<float>(slices * kSamplingWarps);
  args->bin_masses = layout.take<uint64_t>(rows * kNumBins);
  args->bin_counts = layout.take<uint32_t>(rows * kNumBins);
  args->listed = layout.take<uint64_t>(rows * kMaxListed);
  args->raw_listed = layout.take<uint64_t>(rows * kMaxRawListed);
  args->reports_of = layout.take<SamplingRow>(rows);
  return layout.bytes();
}

simt::LaunchConfig config_of(const SamplingArgs& args, bool by_slice, size_t shared_bytes, Stream stream) {
  const auto slices = static_cast<unsigned>(args.num_slices), rows = static_cast<unsigned>(args.block.num_rows);
  return {.grid = by_slice ? dim3(slices, rows) : dim3(rows),
          .block = dim3(kSamplingThreads),
          .shared_bytes = shared_bytes,
          .stream = stream,
          .pdl = true};
}

// From the rows to their tokens.
void launch_draw(const SamplingArgs& args, Stream stream) {
  simt::launch<sampling_scan_kernel>(config_of(args, true, sizeof(ScanShared), stream), args);
  simt::launch<sampling_plan_kernel>(config_of(args, false, sizeof(PlanShared), stream), args);
  simt::launch<sampling_select_kernel>(config_of(args, true, sizeof(SelectShared), stream), args);
  simt::launch<sampling_draw_kernel>(config_of(args, true, sizeof(SelectShared), stream), args);
}

}  // namespace

size_t sampling_workspace_bytes(int64_t max_rows, int64_t vocab_size, int) {
  SamplingArgs args = {};
  return lay_out(nullptr, max_rows, vocab_size, &args);
}

void sample(const SamplingParamsBlock& block, Stream stream) {
  QUIRE_CHECK(block.num_rows >= 0 && block.num_rows <= kMaxRows, "rows ", block.num_rows);
  if (block.num_rows == 0) return;
  QUIRE_CHECK(block.vocab_size > 0 && block.vocab_size <= 1 << 23, "vocab_size ", block.vocab_size);
  QUIRE_CHECK(block.logits_stride >= block.vocab_size, block.logits_stride, " < ", block.vocab_size);
  QUIRE_CHECK(block.logits != nullptr && block.rows != nullptr && block.token_ids != nullptr);
  QUIRE_CHECK(block.logprobs_stride <= 0 ||
              (block.logprob_ids != nullptr && block.logprobs != nullptr && block.sampled_rank != nullptr));
  SamplingArgs args = {};
  const size_t needed = lay_out(block.workspace, block.num_rows, block.vocab_size, &args);
  QUIRE_CHECK(block.workspace != nullptr && block.workspace_bytes >= needed, block.workspace_bytes, " < ", needed);
  QUIRE_CHECK(reinterpret_cast<uintptr_t>(block.workspace) % 16 == 0, "workspace is not aligned");
  args.block = block;
  args.num_slices = static_cast<int32_t>(num_slices_of(block.vocab_size));
  args.is_wide = block.logits_stride % 4 == 0 && reinterpret_cast<uintptr_t>(block.logits) % 16 == 0;
  const bool reports = block.logprobs_stride > 0;
  args.reports = !reports || !is_processed(block.logprobs_mode);
  launch_draw(args, stream);
  if (!args.reports) {
    simt::launch<sampling_process_kernel>(config_of(args, true, 0, stream), args);
    args.block.rows = args.reports_of;
    args.reports = true;
    launch_draw(args, stream);
  }
  if (reports) simt::launch<sampling_logprobs_kernel>(config_of(args, true, sizeof(SelectShared), stream), args);
}

}  // namespace quire::cuda
