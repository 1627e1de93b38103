// The device of bench_simt_kernels: the emulation. Its times tell how long an emulated run takes and nothing of a GPU.
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>

#include "cuda/device.h"
#include "cuda/device_kernels.cuh"

namespace quire::bench {
namespace {

constexpr size_t kArenaBytes = size_t{64} << 20;
constexpr size_t kCeilingBytes = size_t{1} << 20;

template <typename Work>
double microseconds(const Work& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
}

class EmulatedDevice : public Device {
 public:
  EmulatedDevice() {
    machine_.backend = "simt";
    machine_.name = "emulation";
    machine_.num_multiprocessors = simt::num_multiprocessors();
    machine_.memory_bytes = kArenaBytes;
    machine_.cache_bytes = 0;
    arena_bytes_ = kArenaBytes;
    arena_ = static_cast<char*>(std::aligned_alloc(4096, kArenaBytes));
    if (arena_ == nullptr) throw std::bad_alloc();
    const size_t pattern_bytes = size_t{64} << 10;  // emulated filling of all of it would take longer than the cases
    fill_uniform_bf16(arena_, pattern_bytes);
    for (size_t at = pattern_bytes; at < kArenaBytes; at += pattern_bytes) {
      std::memcpy(arena_ + at, arena_, pattern_bytes);
    }
  }

  Stream stream() override { return {}; }
  void write(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void zero(void* to, size_t bytes) override { std::memset(to, 0, bytes); }
  void fill_normal(float* to, int64_t count, float deviation, uint64_t seed) override {
    simt::launch<fill_normal_kernel>({.grid = dim3(2), .block = dim3(256)}, FillArgs{to, count / 4, deviation, seed});
  }

  Timing time(int copies, const std::function<void(int)>& launch) override {
    std::vector<double> samples;
    for (int i = 0; i < 3; ++i) samples.push_back(microseconds([&] { launch(i % copies); }));
    return summarise(samples, 1, "host clock");
  }

  double copy_bytes_per_second() override {
    const double time = microseconds([&] { std::memmove(arena_ + kArenaBytes / 2, arena_, kCeilingBytes); });
    return 2e6 * static_cast<double>(kCeilingBytes) / time;
  }
  double read_bytes_per_second() override {
    auto* const sink = reinterpret_cast<uint32_t*>(arena_ + kCeilingBytes);
    const ReadArgs args{reinterpret_cast<const uint4*>(arena_), static_cast<int64_t>(kCeilingBytes / 16), sink};
    const double time = microseconds([&] { simt::launch<read_kernel>({.grid = dim3(3), .block = dim3(512)}, args); });
    return 1e6 * static_cast<double>(kCeilingBytes) / time;
  }

 protected:
  void fill_uniform_bf16(void* to, size_t bytes) override {
    if (bytes < 16) return;
    simt::launch<fill_uniform_kernel>({.grid = dim3(2), .block = dim3(256)},
                                      FillArgs{to, static_cast<int64_t>(bytes / 16), 0, 1});
  }
};

}  // namespace

Device* open_device(bool /*is_toy*/, std::string* /*problem*/) {
  static EmulatedDevice device;
  return &device;
}

}  // namespace quire::bench
