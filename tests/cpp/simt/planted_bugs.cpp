// Kernels with one bug each that only a sanitizer sees, built with AddressSanitizer + UndefinedBehaviorSanitizer and
// with ThreadSanitizer whatever the build's own options are. planted_bugs.py runs one (argument: its name) and asks
// that the report names the line marked "planted: name". "sound" has no bug and must give no report.
#include <array>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/simt/tc.h"

namespace quire::simt {
namespace {

struct Args {
  float* x;  // 128 numbers
  int shift;
};

struct Smem {
  float first[128];
  float second[128];
};
struct alignas(16) Copies {
  float values[128];
};

// A bit of everything, and right: barriers, partial masks, copies, matrices, warps that return early.
__global__ void sound(const __grid_constant__ Args p) {
  auto& s = block_shared<Copies>();
  const unsigned t = threadIdx.x;
  const float own = p.x[t];
  if (t < 32) cp_async16(s.values + t * 4, p.x + t * 4);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  float sum = s.values[t ^ 77];
  __syncthreads();
  s.values[t] = own;
  __syncwarp();
  sum += s.values[t ^ 3];
  if (t % 32 < 16) sum += __shfl_xor_sync(0xffffu, sum, 8);
  named_barrier_sync(static_cast<int>(t / 64) + 1, 64);
  sum += s.values[t ^ 32];
  __syncthreads();
  atomicAdd(p.x, 1.0f);
  if (t >= 32) return;
  __syncthreads();
  uint32_t r[4], b[2] = {1, 2};
  float d[4] = {};
  ldmatrix<true>(r, s.values + t * 4);
  mma_m16n8k16(d, r, b, bf16_tag());
  __syncwarp();
  stmatrix_x4(s.values + t * 4, r);
}

__global__ void past_member(const __grid_constant__ Args p) {
  auto& s = block_shared<Smem>();
  s.first[threadIdx.x + p.shift] = 1.0f;  // planted: past_member
  __syncthreads();
  p.x[threadIdx.x] = s.first[threadIdx.x];
}

__global__ void past_shared(const __grid_constant__ Args p) {
  float* const s = block_shared<Smem>().second;
  s[threadIdx.x + p.shift] = 1.0f;  // planted: past_shared
  __syncthreads();
  p.x[threadIdx.x] = s[threadIdx.x];
}

__global__ void past_global(const __grid_constant__ Args p) {
  p.x[threadIdx.x + p.shift] += 1.0f;  // planted: past_global
}

__global__ void past_global_copy(const __grid_constant__ Args p) {
  auto& s = block_shared<Copies>();
  if (threadIdx.x < 32) cp_async16(s.values + threadIdx.x * 4, p.x + threadIdx.x * 4 + 4);  // planted: past_global_copy
  cp_async_commit();
  cp_async_wait<0>();
}

__global__ void past_registers(const __grid_constant__ Args p) {
  float values[8];
  for (int i = 0; i < 8; i++) values[i] = p.x[i];
  __syncwarp();
  p.x[threadIdx.x] = values[(threadIdx.x + p.shift) % 16];  // planted: past_registers
}

__global__ void misaligned(const __grid_constant__ Args p) {
  const float4 value = *reinterpret_cast<const float4*>(p.x + p.shift);  // planted: misaligned
  __syncthreads();
  p.x[threadIdx.x] = value.x;
}

__global__ void index_overflow(const __grid_constant__ Args p) {
  const int index = 0x7fffffff - static_cast<int>(threadIdx.x) + p.shift;  // planted: index_overflow
  p.x[0] = static_cast<float>(index);
}

__global__ void race_block(const __grid_constant__ Args p) {
  auto& s = block_shared<Smem>();
  s.first[threadIdx.x] = p.x[threadIdx.x];
  p.x[threadIdx.x] = s.first[threadIdx.x ^ 64];  // planted: race_block
}

__global__ void race_loop(const __grid_constant__ Args p) {
  auto& s = block_shared<Smem>();
  float sum = 0;
  for (int i = 0; i < 4; i++) {
    s.first[threadIdx.x] = static_cast<float>(i);  // planted: race_loop
    __syncthreads();
    sum += s.first[127 - threadIdx.x];
  }
  p.x[threadIdx.x] = sum;
}

// A shuffle moves registers; it does not order memory.
__global__ void race_shuffle(const __grid_constant__ Args p) {
  auto& s = block_shared<Smem>();
  s.first[threadIdx.x] = p.x[threadIdx.x];
  const float own = __shfl_sync(~0u, p.x[threadIdx.x], 0);
  p.x[threadIdx.x] = own + s.first[threadIdx.x ^ 1];  // planted: race_shuffle
}

__global__ void race_copy(const __grid_constant__ Args p) {
  auto& s = block_shared<Copies>();
  if (threadIdx.x < 32) cp_async16(s.values + threadIdx.x * 4, p.x + threadIdx.x * 4);
  cp_async_commit();
  cp_async_wait<0>();
  const float other = s.values[127 - threadIdx.x];  // planted: race_copy
  __syncthreads();
  p.x[threadIdx.x] = other;
}

__global__ void race_named(const __grid_constant__ Args p) {
  auto& s = block_shared<Smem>();
  s.first[threadIdx.x] = p.x[threadIdx.x];
  named_barrier_sync(static_cast<int>(threadIdx.x / 64) + 1, 64);
  p.x[threadIdx.x] = s.first[threadIdx.x ^ 64];  // planted: race_named
}

__global__ void race_global(const __grid_constant__ Args p) {
  atomicAdd(p.x, 1.0f);
  p.x[threadIdx.x / 2 + 1] = 1.0f;  // planted: race_global
}

template <auto Kernel>
void run(int shift, size_t shared_bytes) {
  std::vector<float> x(128, 1.0f);
  launch<Kernel>({.grid = dim3(2), .block = dim3(128), .shared_bytes = shared_bytes}, Args{x.data(), shift});
}

const struct {
  const char* name;
  void (*run)(int shift, size_t shared_bytes);
  int shift;
  size_t shared_bytes = sizeof(Smem);
} kBugs[] = {{"sound", run<sound>, 0},
             {"past_member", run<past_member>, 1},
             {"past_shared", run<past_shared>, 128},
             {"past_global", run<past_global>, 1},
             {"past_global_copy", run<past_global_copy>, 0},
             {"past_registers", run<past_registers>, 0},
             {"misaligned", run<misaligned>, 1},
             {"index_overflow", run<index_overflow>, 1},
             {"race_block", run<race_block>, 0},
             {"race_loop", run<race_loop>, 0},
             {"race_shuffle", run<race_shuffle>, 0},
             {"race_copy", run<race_copy>, 0},
             {"race_named", run<race_named>, 0},
             {"race_global", run<race_global>, 0}};

}  // namespace
}  // namespace quire::simt

int main(int count, char** arguments) {
  for (const auto& bug : quire::simt::kBugs) {
    if (count == 2 && !std::strcmp(arguments[1], bug.name)) {
      bug.run(bug.shift, bug.shared_bytes);
      std::puts("ran");
      return 0;
    }
  }
  std::fputs("usage: planted_bugs NAME\n", stderr);
  return 2;
}
