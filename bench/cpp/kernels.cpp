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
#include "cpu/machine_limits.h"
#include "kernels/cases/all_cases.h"

namespace quire {
namespace {

constexpr double kColdBytes = 256e6;
constexpr double kComputeBound = 64.0;  // flops a byte

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void run_case(benchmark::State& state, const cases::CaseEntry& entry, const KernelTable& table, ThreadPool& pool,
              const cpu::MachineLimits& limits) {
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
  double limit = bytes / limits.read_bytes_per_second;
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
  const cpu::MachineLimits limits = cpu::measure_limits(table.name, pool, static_cast<size_t>(2 * kColdBytes));
  std::printf("%s, %d threads: reads %.1f GB/s, bf16 %.0f GFLOP/s, f32 %.0f GFLOP/s (0: not measured)\n", table.name,
              pool.num_threads(), limits.read_bytes_per_second * 1e-9, limits.bf16_flops * 1e-9,
              limits.f32_flops * 1e-9);
  const std::vector<cases::CaseEntry> all = cases::cpu_cases();
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
