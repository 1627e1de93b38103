// Times every benchmark case of the kernel table: time, GB/s, GFLOP/s and the share of what this machine can do.
//
// The limit of a case is the larger of bytes / (measured read bandwidth) and flops / (measured rate of the instruction
// that its kernels are made of), with the same threads, measured here before the cases. Cases that move more than they
// compute rotate over copies larger than the last-level cache, as the layers of a model do.
// QUIRE_CPU_ISA and OMP_NUM_THREADS choose what runs; --benchmark_filter=REGEX chooses the cases.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "base/threads.h"
#include "cpu/cpu_kernels.h"
#include "kernels/cases/all_cases.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace quire {
namespace {

constexpr double kColdBytes = 256e6;
constexpr double kComputeBound = 64.0;  // flops a byte

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Best of several runs of task on every thread of the pool.
template <typename Task>
double best_seconds(ThreadPool& pool, const Task& task) {
  double best = 1e30;
  for (int run = 0; run < 8; ++run) {
    const double start = seconds();
    pool.parallel_for(pool.num_threads(), task);
    best = std::min(best, seconds() - start);
  }
  return best;
}

void read_plain(const uint64_t* begin, const uint64_t* end) {
  uint64_t sum[8] = {};
  for (; begin + 8 <= end; begin += 8) {
    for (int j = 0; j < 8; ++j) sum[j] += begin[j];
  }
  benchmark::DoNotOptimize(sum);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void read_avx2(const uint64_t* begin, const uint64_t* end) {
  __m256i sum[4] = {};
  for (; begin + 16 <= end; begin += 16) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(begin + 4 * j));
      sum[j] = _mm256_xor_si256(sum[j], x);
    }
  }
  benchmark::DoNotOptimize(sum);
}
#endif

double read_bytes_per_second(ThreadPool& pool) {
  auto* read = &read_plain;
#if defined(__x86_64__)
  if (cpu::avx2_kernels() != nullptr) read = &read_avx2;
#endif
  const std::vector<uint64_t> data(static_cast<size_t>(kColdBytes) / 8 * 2, 1);
  const int64_t part = static_cast<int64_t>(data.size()) / pool.num_threads();
  const double time =
      best_seconds(pool, [&](int64_t thread) { read(data.data() + thread * part, data.data() + (thread + 1) * part); });
  return static_cast<double>(data.size()) * 8.0 / time;
}

#if defined(__x86_64__)
constexpr int kSums = 16;
constexpr int kRepeats = 1000000;

__attribute__((target("avx512f,avx512bf16"))) void run_dot_bf16() {
  __m512 sums[kSums];
#pragma GCC unroll 16
  for (int j = 0; j < kSums; ++j) sums[j] = _mm512_setzero_ps();
  __m512bh one = (__m512bh)_mm512_set1_epi16(0x3f80);
  for (int i = 0; i < kRepeats; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kSums; ++j) {
      sums[j] = _mm512_dpbf16_ps(sums[j], one, one);
      asm volatile("" : "+v"(sums[j]));  // keeps the sum in its register and the loop a loop
    }
  }
  __m512 total = sums[0];
#pragma GCC unroll 16
  for (int j = 1; j < kSums; ++j) total += sums[j];
  benchmark::DoNotOptimize(total);
}

__attribute__((target("amx-tile,amx-bf16"))) void run_amx() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
  } shapes;
  asm volatile("" ::"m"(shapes));
  _tile_loadconfig(&shapes);
  for (int i = 0; i < kRepeats / 16; ++i) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_release();
}

__attribute__((target("avx512f"))) void run_fma_512() {
  __m512 sums[kSums];
#pragma GCC unroll 16
  for (int j = 0; j < kSums; ++j) sums[j] = _mm512_setzero_ps();
  const __m512 one = _mm512_set1_ps(1.0f);
  for (int i = 0; i < kRepeats; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kSums; ++j) {
      sums[j] = _mm512_fmadd_ps(one, one, sums[j]);
      asm volatile("" : "+v"(sums[j]));  // keeps the sum in its register and the loop a loop
    }
  }
  __m512 total = sums[0];
#pragma GCC unroll 16
  for (int j = 1; j < kSums; ++j) total += sums[j];
  benchmark::DoNotOptimize(total);
}

__attribute__((target("avx2,fma"))) void run_fma_256() {
  constexpr int kFew = 12;  // there are 16 registers
  __m256 sums[kFew];
#pragma GCC unroll 16
  for (int j = 0; j < kFew; ++j) sums[j] = _mm256_setzero_ps();
  const __m256 one = _mm256_set1_ps(1.0f);
  for (int i = 0; i < kRepeats; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kFew; ++j) {
      sums[j] = _mm256_fmadd_ps(one, one, sums[j]);
      asm volatile("" : "+v"(sums[j]));  // keeps the sum in its register and the loop a loop
    }
  }
  __m256 total = sums[0];
#pragma GCC unroll 16
  for (int j = 1; j < kFew; ++j) total += sums[j];
  benchmark::DoNotOptimize(total);
}
#endif

struct Limits {
  double bytes_per_second = 0;
  double bf16_flops = 0;  // 0: not known for this instruction set
  double f32_flops = 0;
};

Limits measure_limits(const std::string& isa, ThreadPool& pool) {
  Limits limits;
  limits.bytes_per_second = read_bytes_per_second(pool);
#if defined(__x86_64__)
  const double steps = static_cast<double>(kRepeats) * pool.num_threads();
  if (isa == "avx512" || isa == "amx") {
    limits.bf16_flops = steps * kSums * 64 / best_seconds(pool, [](int64_t) { run_dot_bf16(); });
    if (isa == "amx") limits.bf16_flops = steps / 16 * 4 * 16384 / best_seconds(pool, [](int64_t) { run_amx(); });
    limits.f32_flops = steps * kSums * 32 / best_seconds(pool, [](int64_t) { run_fma_512(); });
  } else if (isa == "avx2") {
    limits.f32_flops = steps * 12 * 16 / best_seconds(pool, [](int64_t) { run_fma_256(); });
    limits.bf16_flops = limits.f32_flops;
  }
#endif
  return limits;
}

void run_case(benchmark::State& state, const cases::CaseEntry& entry, const KernelTable& table, ThreadPool& pool,
              const Limits& limits) {
  const Stream stream{&pool};
  std::vector<std::unique_ptr<cases::KernelCase>> copies;
  copies.push_back(entry.make(table, stream));
  const double bytes = copies[0]->bytes, flops = copies[0]->flops;
  while (flops < kComputeBound * bytes && static_cast<double>(copies.size()) * bytes < kColdBytes &&
         copies.size() < 64) {
    copies.push_back(entry.make(table, stream));
  }
  for (auto& copy : copies) copy->reset();
  double total = 0;
  int64_t count = 0;
  for (auto _ : state) {
    const double start = seconds();
    copies[static_cast<size_t>(count++) % copies.size()]->run(table, stream);
    const double time = seconds() - start;
    state.SetIterationTime(time);
    total += time;
  }
  const double time = total / static_cast<double>(count);
  const bool is_bf16 = entry.name.find("bfloat16") != std::string::npos;
  const double peak = is_bf16 ? limits.bf16_flops : limits.f32_flops;
  double limit = bytes / limits.bytes_per_second;
  if (peak > 0) limit = std::max(limit, flops / peak);
  state.counters["GB/s"] = bytes / time * 1e-9;
  state.counters["GFLOP/s"] = flops / time * 1e-9;
  if (peak > 0) state.counters["share"] = limit / time;
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) {
  using namespace quire;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  const KernelTable& table = cpu::select_kernels();
  ThreadPool pool(default_num_threads());
  const Limits limits = measure_limits(table.name, pool);
  std::printf("%s, %d threads: reads %.1f GB/s, bf16 %.0f GFLOP/s, f32 %.0f GFLOP/s (0: not measured)\n", table.name,
              pool.num_threads(), limits.bytes_per_second * 1e-9, limits.bf16_flops * 1e-9, limits.f32_flops * 1e-9);
  const std::vector<cases::CaseEntry> all = cases::all_cases();
  for (const cases::CaseEntry& entry : all) {
    if (!entry.is_benchmark) continue;
    benchmark::RegisterBenchmark(entry.name.c_str(),
                                 [&](benchmark::State& state) { run_case(state, entry, table, pool, limits); })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
