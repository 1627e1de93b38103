// The matrix products of a decode step, with the epilogues that the models use: each weight is read once.
#include <memory>

#include "base/check.h"
#include "cuda/bench_case.h"
#include "cuda/cuda_kernels.h"

namespace quire::bench {
namespace {

enum class Epilogue { plain, gated, residual, logits };

struct Linear {
  const char* model;
  const char* name;
  int64_t n, k;  // rows and columns of the weight
  Epilogue epilogue;
};
constexpr Linear kLinears[] = {
    {"8b", "qkv", 6144, 4096, Epilogue::plain},      {"8b", "o", 4096, 4096, Epilogue::residual},
    {"8b", "gate_up", 28672, 4096, Epilogue::gated}, {"8b", "down", 4096, 14336, Epilogue::residual},
    {"8b", "head", 128256, 4096, Epilogue::logits},  {"1b", "qkv", 3072, 2048, Epilogue::plain},
    {"1b", "o", 2048, 2048, Epilogue::residual},     {"1b", "gate_up", 16384, 2048, Epilogue::gated},
    {"1b", "down", 2048, 8192, Epilogue::residual},  {"1b", "head", 128256, 2048, Epilogue::logits},
};
constexpr Linear kToyLinears[] = {{"toy", "qkv", 70, 128, Epilogue::plain},
                                  {"toy", "gate_up", 96, 64, Epilogue::gated},
                                  {"toy", "down", 40, 96, Epilogue::residual}};

Work make_work(Device& device, const Linear& linear, int64_t m) {
  const KernelTable& table = cuda::kernels();
  const bool is_gated = linear.epilogue == Epilogue::gated;
  const int64_t outputs = is_gated ? linear.n / 2 : linear.n;
  GemmParams p;
  p.weight = {nullptr, DType::bf16, is_gated, linear.n, linear.k};
  p.m = m;
  p.a_stride = linear.k;
  p.a = device.take_of<uint16_t>(m * linear.k);
  p.out_stride = outputs;
  p.out_dtype = linear.epilogue == Epilogue::plain || is_gated ? DType::bf16 : DType::f32;
  p.activation = is_gated ? Activation::silu : Activation::none;
  p.accumulate = linear.epilogue == Epilogue::residual;
  p.out = device.take_of<float>(m * outputs);
  if (table.gemm_workspace_bytes != nullptr) {
    p.workspace_bytes = table.gemm_workspace_bytes(linear.n, linear.k, DType::bf16);
    if (p.workspace_bytes > 0) p.workspace = device.take(p.workspace_bytes);
    if (p.workspace_bytes > 0) device.zero(p.workspace, p.workspace_bytes);
  }
  const double out_bytes = static_cast<double>(dtype_bytes(p.out_dtype)) * (p.accumulate ? 2.0 : 1.0);
  const double weight_bytes = 2.0 * static_cast<double>(linear.n * linear.k);
  Work work{.bytes = weight_bytes + static_cast<double>(m) * (2.0 * static_cast<double>(linear.k) +
                                                              out_bytes * static_cast<double>(outputs)),
            .flops = 2.0 * static_cast<double>(m * linear.n * linear.k)};
  work.copies = copies_beyond_cache(device, weight_bytes);
  std::vector<void*> weights;
  for (int i = 0; i < work.copies; ++i) {
    weights.push_back(device.take(table.packed_weight_bytes(linear.n, linear.k, DType::bf16, is_gated)));
  }
  work.launch = [p, weights, stream = device.stream()](int copy) {
    GemmParams each = p;
    each.weight.data = weights[static_cast<size_t>(copy)];
    cuda::kernels().gemm(each, stream);
  };
  return work;
}

void add(const Linear& linear, const std::vector<int64_t>& rows, std::vector<BenchCase>& cases) {
  for (const int64_t m : rows) {
    cases.push_back({str_cat("gemm/", linear.model, "/", linear.name, "/m", m),
                     {{"model", linear.model},
                      {"linear", linear.name},
                      {"m", m},
                      {"n", linear.n},
                      {"k", linear.k},
                      {"gated", linear.epilogue == Epilogue::gated},
                      {"residual", linear.epilogue == Epilogue::residual},
                      {"dtype", "bfloat16"}},
                     [=](Device& device) { return make_work(device, linear, m); }});
  }
}

}  // namespace

void add_gemm_cases(bool is_toy, std::vector<BenchCase>& cases) {
  if (is_toy) {
    for (const Linear& linear : kToyLinears) add(linear, {1, 4}, cases);
    return;
  }
  for (const Linear& linear : kLinears) add(linear, {1, 2, 4, 8, 16, 32, 64}, cases);
}

}  // namespace quire::bench
