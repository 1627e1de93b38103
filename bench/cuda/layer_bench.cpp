// The small kernels of a layer: norm of the residual, and rotation with the write of keys and values.
#include <numeric>
#include <random>

#include "base/check.h"
#include "cuda/bench_case.h"
#include "cuda/cuda_kernels.h"

namespace quire::bench {
namespace {

Work make_norm(Device& device, int64_t rows, int64_t dim) {
  Work work{.bytes = 6.0 * static_cast<double>(rows * dim)};
  work.copies = copies_beyond_cache(device, work.bytes);
  NormParams p;
  p.rows = rows;
  p.dim = p.x_stride = p.out_stride = dim;
  p.weight = device.take_of<float>(dim);
  p.eps = 1e-5f;
  p.out_dtype = DType::bf16;
  std::vector<std::pair<float*, void*>> copies;
  for (int i = 0; i < work.copies; ++i) {
    float* const x = device.take_of<float>(rows * dim);
    copies.emplace_back(x, device.take_of<uint16_t>(rows * dim));
  }
  work.launch = [p, copies, stream = device.stream()](int copy) {
    NormParams each = p;
    std::tie(each.x, each.out) = copies[static_cast<size_t>(copy)];
    cuda::kernels().norm(each, stream);
  };
  return work;
}

Work make_rope(Device& device, int64_t num_tokens, int32_t heads, int32_t kv_heads, int32_t head_dim) {
  constexpr int32_t kBlockSize = 16, kMaxPositions = 8192;
  const int64_t row = int64_t{heads + 2 * kv_heads} * head_dim;
  const int64_t num_slots = (num_tokens + kBlockSize - 1) / kBlockSize * kBlockSize;
  // Queries are read and written, keys and values read and written elsewhere.
  Work work{.bytes = 4.0 * static_cast<double>(num_tokens * row)};
  work.copies = copies_beyond_cache(device, work.bytes);
  std::vector<int32_t> positions, slots(static_cast<size_t>(num_slots));
  std::mt19937 random(3);
  for (int64_t t = 0; t < num_tokens; ++t) positions.push_back(static_cast<int32_t>(random() % kMaxPositions));
  std::iota(slots.begin(), slots.end(), 0);
  std::shuffle(slots.begin(), slots.end(), random);
  RopeKvWriteParams p;
  p.dtype = DType::bf16;
  p.qkv_stride = row;
  p.num_tokens = num_tokens;
  p.num_heads = heads;
  p.positions = device.upload(positions);
  p.cos_sin = device.take_of<float>(int64_t{kMaxPositions} * head_dim);
  p.rotary_dim = head_dim;
  p.slot_mapping = device.upload(slots);
  p.kv = {nullptr, nullptr, DType::bf16, kBlockSize, kv_heads, head_dim};
  struct Copy {
    void *qkv, *k, *v;
  };
  std::vector<Copy> copies;
  for (int i = 0; i < work.copies; ++i) {
    const int64_t cache = num_slots * kv_heads * head_dim;
    void* const qkv = device.take_of<uint16_t>(num_tokens * row);
    void* const k = device.take_of<uint16_t>(cache);
    copies.push_back({qkv, k, device.take_of<uint16_t>(cache)});
  }
  work.launch = [p, copies, stream = device.stream()](int copy) {
    const Copy& own = copies[static_cast<size_t>(copy)];
    RopeKvWriteParams each = p;
    each.qkv = own.qkv;
    each.kv.k = own.k;
    each.kv.v = own.v;
    cuda::kernels().rope_kv_write(each, stream);
  };
  return work;
}

}  // namespace

void add_layer_cases(bool is_toy, std::vector<BenchCase>& cases) {
  const std::vector<int64_t> rows = is_toy ? std::vector<int64_t>{3} : std::vector<int64_t>{1, 8, 32, 64, 256, 2048};
  for (const int64_t dim : is_toy ? std::vector<int64_t>{128} : std::vector<int64_t>{4096, 2048}) {
    for (const int64_t count : rows) {
      cases.push_back({str_cat("norm/d", dim, "/r", count),
                       {{"rows", count}, {"dim", dim}, {"kind", "rms"}, {"dtype", "bfloat16"}},
                       [=](Device& device) { return make_norm(device, count, dim); }});
    }
  }
  for (const int32_t head_dim : is_toy ? std::vector<int32_t>{64} : std::vector<int32_t>{128, 64}) {
    const int32_t heads = is_toy ? 2 : 32, kv_heads = is_toy ? 1 : 8;
    for (const int64_t count : rows) {
      cases.push_back({str_cat("rope_kv_write/d", head_dim, "/t", count),
                       {{"tokens", count},
                        {"num_heads", heads},
                        {"num_kv_heads", kv_heads},
                        {"head_dim", head_dim},
                        {"dtype", "bfloat16"}},
                       [=](Device& device) { return make_rope(device, count, heads, kv_heads, head_dim); }});
    }
  }
}

}  // namespace quire::bench
