// Attention over the paged cache. Decode: one token of each sequence, all of one length or mixed. Prefill: causal, all
// keys new, 16,384 tokens in all. The plan is made before, as it is once for all layers of a step.
#include <memory>
#include <numeric>
#include <random>

#include "base/check.h"
#include "cuda/attention/prefill_sm90.h"
#include "cuda/bench_case.h"
#include "cuda/cuda_kernels.h"

namespace quire::bench {
namespace {

constexpr int32_t kBlockSize = 16;        // the engine's default
constexpr int32_t kLargeBlockSize = 128;  // a tile of keys in one box of TMA

struct AttentionShape {
  int32_t num_heads, num_kv_heads, head_dim, block_size;
  std::vector<int32_t> num_queries, kv_lens;
};

int64_t total(const std::vector<int32_t>& values) { return std::accumulate(values.begin(), values.end(), int64_t{0}); }

// Of mean `length`, from a quarter of it to seven quarters.
std::vector<int32_t> mixed_lengths(int32_t count, int32_t length) {
  std::mt19937 random(1);
  std::vector<int32_t> lengths;
  for (int32_t i = 0; i < count; ++i) {
    lengths.push_back(std::max(1, length / 4 + static_cast<int32_t>(random() % static_cast<uint32_t>(length * 3 / 2))));
  }
  return lengths;
}

// Everything of a launch but q, out and the cache, which each copy has its own of.
struct AttentionInputs {
  PagedAttentionParams params;
  int64_t q_elements = 0, cache_elements = 0;
  std::vector<void*> q, out, k, v;

  PagedAttentionParams of(int copy) const {
    const auto at = static_cast<size_t>(copy);
    PagedAttentionParams p = params;
    p.q = q[at];
    p.out = out[at];
    p.kv.k = k[at];
    p.kv.v = v[at];
    return p;
  }
};

// Pages lie at random places.
void place_pages(Device& device, const AttentionShape& shape, AttentionInputs& inputs) {
  int32_t longest = 0, num_blocks = 0;
  for (const int32_t length : shape.kv_lens) {
    longest = std::max(longest, length);
    num_blocks += (length + shape.block_size - 1) / shape.block_size;
  }
  std::vector<int32_t> ids(static_cast<size_t>(num_blocks));
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), std::mt19937(2));
  const int32_t stride = (longest + shape.block_size - 1) / shape.block_size;
  std::vector<int32_t> tables, query_start = {0};
  auto next = ids.begin();
  for (size_t s = 0; s < shape.kv_lens.size(); ++s) {
    const int32_t blocks = (shape.kv_lens[s] + shape.block_size - 1) / shape.block_size;
    tables.insert(tables.end(), next, next + blocks);
    tables.resize((s + 1) * static_cast<size_t>(stride), 0);
    next += blocks;
    query_start.push_back(query_start.back() + shape.num_queries[s]);
  }
  PagedAttentionParams& p = inputs.params;
  p.query_start = device.upload(query_start);
  p.kv_lens = device.upload(shape.kv_lens);
  p.block_tables = device.upload(tables);
  p.block_table_stride = stride;
  p.max_kv_len = longest;
  inputs.cache_elements = int64_t{num_blocks} * shape.block_size * shape.num_kv_heads * shape.head_dim;
}

std::shared_ptr<AttentionInputs> make_inputs(Device& device, const AttentionShape& shape, int copies) {
  const KernelTable& table = cuda::kernels();
  auto inputs = std::make_shared<AttentionInputs>();
  PagedAttentionParams& p = inputs->params;
  const int64_t num_tokens = total(shape.num_queries), num_seqs = static_cast<int64_t>(shape.kv_lens.size());
  p.dtype = p.kv.dtype = DType::bf16;
  p.num_heads = shape.num_heads;
  p.kv.num_kv_heads = shape.num_kv_heads;
  p.kv.head_dim = shape.head_dim;
  p.kv.block_size = shape.block_size;
  p.q_stride = p.out_stride = int64_t{shape.num_heads} * shape.head_dim;
  p.num_seqs = static_cast<int32_t>(num_seqs);
  p.num_tokens = num_tokens;
  p.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  place_pages(device, shape, *inputs);
  p.workspace_bytes =
      table.attention_workspace_bytes(num_tokens, num_seqs, p.max_kv_len, shape.num_heads, shape.head_dim, 1);
  p.workspace = device.take(p.workspace_bytes);
  device.zero(p.workspace, p.workspace_bytes);
  p.plan_bytes = table.attention_plan_bytes(num_tokens, num_seqs, shape.num_heads);
  if (p.plan_bytes > 0) p.plan = device.take(p.plan_bytes);
  inputs->q_elements = num_tokens * p.q_stride;
  for (int i = 0; i < copies; ++i) {
    inputs->q.push_back(device.take_of<uint16_t>(inputs->q_elements));
    inputs->out.push_back(device.take_of<uint16_t>(inputs->q_elements));
    inputs->k.push_back(device.take_of<uint16_t>(inputs->cache_elements));
    inputs->v.push_back(device.take_of<uint16_t>(inputs->cache_elements));
  }
  if (p.plan != nullptr) table.plan_attention(inputs->of(0), device.stream());
  return inputs;
}

double bytes_of(const AttentionShape& shape) {
  return 2.0 * shape.head_dim *
         (2.0 * static_cast<double>(total(shape.kv_lens)) * shape.num_kv_heads +
          2.0 * static_cast<double>(total(shape.num_queries)) * shape.num_heads);
}

double flops_of(const AttentionShape& shape) {
  double pairs = 0;
  for (size_t s = 0; s < shape.kv_lens.size(); ++s) {
    pairs += shape.num_queries[s] * (shape.kv_lens[s] - 0.5 * (shape.num_queries[s] - 1));
  }
  return 4.0 * pairs * shape.num_heads * shape.head_dim;
}

enum class Launcher { paged, sm90, plan };

Work make_work(Device& device, const AttentionShape& shape, int copies, Launcher launcher) {
  const auto inputs = make_inputs(device, shape, copies);
  const Stream stream = device.stream();
  Work work{.bytes = bytes_of(shape), .flops = flops_of(shape), .copies = copies};
  if (launcher == Launcher::sm90) {
    if (!cuda::prefill_sm90_takes(inputs->of(0))) throw NotSupported("prefill_sm90 does not take this shape here");
    work.launch = [inputs, stream](int copy) { cuda::prefill_sm90(inputs->of(copy), stream); };
  } else if (launcher == Launcher::plan) {
    if (inputs->params.plan == nullptr) throw NotSupported("this backend has no plan");
    work.bytes = work.flops = 0;
    work.launch = [inputs, stream](int copy) { cuda::kernels().plan_attention(inputs->of(copy), stream); };
  } else {
    work.launch = [inputs, stream](int copy) { cuda::kernels().paged_attention(inputs->of(copy), stream); };
  }
  return work;
}

void add_decode(std::vector<BenchCase>& cases, int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t batch,
                int32_t length, bool is_mixed) {
  const std::string name = str_cat("decode/d", head_dim, "/b", batch, "/l", length, is_mixed ? "/mixed" : "/uniform");
  const nlohmann::json record = {{"batch", batch},     {"length", length},         {"mixed", is_mixed},
                                 {"num_heads", heads}, {"num_kv_heads", kv_heads}, {"head_dim", head_dim},
                                 {"page", kBlockSize}, {"dtype", "bfloat16"}};
  cases.push_back({name, record, [=](Device& device) {
                     AttentionShape shape{heads,
                                          kv_heads,
                                          head_dim,
                                          kBlockSize,
                                          std::vector<int32_t>(size_t(batch), 1),
                                          std::vector<int32_t>(size_t(batch), length)};
                     if (is_mixed) shape.kv_lens = mixed_lengths(batch, length);
                     return make_work(device, shape, copies_beyond_cache(device, bytes_of(shape)), Launcher::paged);
                   }});
}

void add_prefill(std::vector<BenchCase>& cases, int32_t num_heads, int32_t num_kv_heads, int32_t head_dim,
                 int32_t num_tokens, int32_t length) {
  const auto add = [&](const char* kernel, Launcher launcher, int32_t block_size) {
    const int32_t batch = num_tokens / length;
    const nlohmann::json record = {
        {"batch", batch},       {"length", length},   {"num_heads", num_heads}, {"num_kv_heads", num_kv_heads},
        {"head_dim", head_dim}, {"page", block_size}, {"causal", true},         {"kernel", kernel},
        {"dtype", "bfloat16"}};
    cases.push_back({str_cat("prefill/d", head_dim, "/l", length, "/", kernel), record, [=](Device& device) {
                       const std::vector<int32_t> lengths(size_t(batch), length);
                       return make_work(device, {num_heads, num_kv_heads, head_dim, block_size, lengths, lengths}, 1,
                                        launcher);
                     }});
  };
  add("paged", Launcher::paged, kBlockSize);
  add("sm90", Launcher::sm90, kBlockSize);
  add("sm90_p128", Launcher::sm90, kLargeBlockSize);
}

void add_plan(std::vector<BenchCase>& cases, int32_t batch, int32_t length) {
  cases.push_back({str_cat("plan/b", batch, "/l", length),
                   {{"batch", batch}, {"length", length}, {"head_dim", 128}},
                   [=](Device& device) {
                     return make_work(
                         device,
                         {32, 8, 128, kBlockSize, std::vector<int32_t>(size_t(batch), 1), mixed_lengths(batch, length)},
                         1, Launcher::plan);
                   }});
}

}  // namespace

void add_attention_cases(bool is_toy, std::vector<BenchCase>& cases) {
  if (is_toy) {
    add_decode(cases, 4, 1, 64, 1, 40, false);
    add_decode(cases, 4, 1, 128, 3, 100, true);
    add_prefill(cases, 2, 1, 64, 96, 48);
    add_plan(cases, 3, 50);
    return;
  }
  for (const int32_t head_dim : {128, 64}) {
    for (const int32_t length : {1024, 8192, 512, 2048, 4096, 32768}) {
      for (const int32_t batch : {1, 8, 32, 64, 128, 256}) {
        add_decode(cases, 32, 8, head_dim, batch, length, false);
        if (batch > 1) add_decode(cases, 32, 8, head_dim, batch, length, true);
      }
    }
  }
  for (const int32_t head_dim : {128, 64, 256}) {  // 4,096 columns, as in FlashAttention's tables twice over
    for (const int32_t length : {512, 1024, 2048, 4096, 8192, 16384}) {
      add_prefill(cases, 4096 / head_dim, 1024 / head_dim, head_dim, 16384, length);
    }
  }
  for (const int32_t batch : {1, 64, 256}) add_plan(cases, batch, 1024);
}

}  // namespace quire::bench
