// Sampling: rows of float32 logits of deviation 2.5, all rows of one batch asking for the same. Temperature 1 and no
// penalties, so that a launch leaves the logits as they were.
#include <memory>

#include "base/check.h"
#include "cuda/bench_case.h"
#include "cuda/cuda_kernels.h"

namespace quire::bench {
namespace {

struct Wish {
  const char* name;
  float temperature;
  int32_t top_k;
  float top_p;
};
constexpr Wish kWishes[] = {{"greedy", 0.0f, 0, 1.0f},
                            {"temperature", 1.0f, 0, 1.0f},
                            {"top_k", 1.0f, 50, 1.0f},
                            {"top_p", 1.0f, 0, 0.95f},
                            {"top_k_top_p", 1.0f, 50, 0.95f}};

Work make_work(Device& device, const Wish& wish, int32_t vocab_size, int32_t num_rows) {
  const KernelTable& table = cuda::kernels();
  std::vector<SamplingRow> rows(static_cast<size_t>(num_rows));
  for (size_t r = 0; r < rows.size(); ++r) {
    rows[r].temperature = wish.temperature;
    rows[r].top_k = wish.top_k;
    rows[r].top_p = wish.top_p;
    rows[r].seed = r;
  }
  const int64_t count = int64_t{num_rows} * vocab_size;
  Work work{.bytes = 4.0 * static_cast<double>(count)};
  work.copies = copies_beyond_cache(device, work.bytes);
  SamplingParamsBlock block;
  block.logits_stride = block.vocab_size = vocab_size;
  block.num_rows = num_rows;
  block.rows = device.upload(rows);
  block.token_ids = device.take_of<int32_t>(num_rows);
  block.workspace_bytes = table.sampling_workspace_bytes(num_rows, vocab_size, 1);
  block.workspace = device.take(block.workspace_bytes);
  device.zero(block.workspace, block.workspace_bytes);
  std::vector<float*> logits;
  for (int i = 0; i < work.copies; ++i) {
    logits.push_back(device.take_of<float>(count));
    device.fill_normal(logits.back(), count, 2.5f, static_cast<uint64_t>(i) << 40);
  }
  work.launch = [block, logits, stream = device.stream()](int copy) {
    SamplingParamsBlock p = block;
    p.logits = logits[static_cast<size_t>(copy)];
    cuda::kernels().sample(p, stream);
  };
  return work;
}

}  // namespace

void add_sampling_cases(bool is_toy, std::vector<BenchCase>& cases) {
  const std::vector<int32_t> vocabularies = is_toy ? std::vector{5000} : std::vector{131072, 128256};
  const std::vector<int32_t> batches = is_toy ? std::vector{2} : std::vector{128, 1, 32, 256, 512};
  for (const int32_t vocab_size : vocabularies) {
    for (const int32_t batch : batches) {
      for (const Wish& wish : kWishes) {
        cases.push_back({str_cat("sampling/v", vocab_size, "/b", batch, "/", wish.name),
                         {{"vocab_size", vocab_size},
                          {"batch", batch},
                          {"wish", wish.name},
                          {"top_k", wish.top_k},
                          {"top_p", wish.top_p},
                          {"temperature", wish.temperature},
                          {"deviation", 2.5}},
                         [=](Device& device) { return make_work(device, wish, vocab_size, batch); }});
      }
    }
  }
}

}  // namespace quire::bench
