// The loops behind machine_limits.h.
#include "cpu/machine_limits.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include "cpu/cpu_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace quire::cpu {
namespace {

constexpr int kRuns = 8;
constexpr double kBytesPerRun = 512e6;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The compiler must believe that somebody reads the value.
template <typename T>
void keep(const T& value) {
  asm volatile("" : : "m"(value) : "memory");
}

// Best of several runs of task on every thread of the pool.
template <typename Task>
double best_seconds(ThreadPool& pool, const Task& task) {
  double best = 1e30;
  for (int run = 0; run < kRuns; ++run) {
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
  keep(sum);
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
  keep(sum);
}

__attribute__((target("avx512f"))) void read_avx512(const uint64_t* begin, const uint64_t* end) {
  __m512i sum[8] = {};
  for (; begin + 64 <= end; begin += 64) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) sum[j] = _mm512_xor_si512(sum[j], _mm512_loadu_si512(begin + 8 * j));
  }
  keep(sum);
}
#endif

// Memory as the regions of a device have it, on huge pages where there are any.
class Pages {
 public:
  explicit Pages(size_t num_bytes)
      : num_bytes_((num_bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes),
        data_(::operator new(num_bytes_, std::align_val_t{kHugePageBytes})) {
    ::madvise(data_, num_bytes_, MADV_HUGEPAGE);
    std::memset(data_, 1, num_bytes_);
  }
  ~Pages() { ::operator delete(data_, std::align_val_t{kHugePageBytes}); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  const uint64_t* words() const { return static_cast<const uint64_t*>(data_); }

 private:
  static constexpr size_t kHugePageBytes = size_t{2} << 20;
  size_t num_bytes_;
  void* data_;
};

double read_bytes_per_second(ThreadPool& pool, size_t num_bytes) {
  auto* read = &read_plain;
#if defined(__x86_64__)
  if (avx2_kernels() != nullptr) read = &read_avx2;
  if (avx512_kernels() != nullptr) read = &read_avx512;
#endif
  constexpr size_t kWordsPerRead = 64;
  const size_t num_parts = static_cast<size_t>(pool.num_threads());
  const size_t part = std::max<size_t>(num_bytes / 8 / num_parts / kWordsPerRead, 1) * kWordsPerRead;
  const Pages pages(part * num_parts * 8);
  const double bytes_per_pass = static_cast<double>(part * num_parts) * 8.0;
  const int passes = std::max(1, static_cast<int>(kBytesPerRun / bytes_per_pass));
  const double time = best_seconds(pool, [&](int64_t thread) {
    const uint64_t* const begin = pages.words() + static_cast<size_t>(thread) * part;
    for (int pass = 0; pass < passes; ++pass) read(begin, begin + part);
  });
  return bytes_per_pass * passes / time;
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
  keep(total);
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
  keep(total);
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
  keep(total);
}
#endif

}  // namespace

MachineLimits measure_limits(std::string_view isa, ThreadPool& pool, size_t num_bytes) {
  MachineLimits limits;
  limits.read_bytes_per_second = read_bytes_per_second(pool, num_bytes);
#if defined(__x86_64__)
  const double steps = static_cast<double>(kRepeats) * pool.num_threads();
  if (isa == "avx512" || isa == "amx") {
    limits.f32_flops = steps * kSums * 32 / best_seconds(pool, [](int64_t) { run_fma_512(); });
    limits.bf16_flops = steps * kSums * 64 / best_seconds(pool, [](int64_t) { run_dot_bf16(); });
    // On some machines converting first and multiplying in float32 would be the faster way.
    limits.bf16_flops = std::max(limits.bf16_flops, limits.f32_flops);
    if (isa == "amx") limits.bf16_flops = steps / 16 * 4 * 16384 / best_seconds(pool, [](int64_t) { run_amx(); });
  } else if (isa == "avx2") {
    limits.f32_flops = steps * 12 * 16 / best_seconds(pool, [](int64_t) { run_fma_256(); });
    limits.bf16_flops = limits.f32_flops;
  }
#endif
  return limits;
}

}  // namespace quire::cpu
