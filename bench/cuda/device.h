// What a benchmark asks of the machine it runs on: memory that is made once, and the time of a launch. Two
// implementations: a GPU (device_cuda.cu) and the emulation, timed by the host clock (device_simt.cpp).
//
// One thread calls everything. Errors are exceptions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "params/stream.h"

namespace quire::bench {

struct Machine {
  std::string backend;  // "cuda" or "simt"
  std::string name;
  int num_multiprocessors = 0;
  size_t memory_bytes = 0, cache_bytes = 0;  // cache_bytes: what copies of inputs must exceed to be read from memory
  int driver_version = 0, runtime_version = 0;
};

// Of one launch, in microseconds.
struct Timing {
  double median = 0, lowest = 0, highest = 0;
  int num_launches = 0;  // in one sample
  int num_samples = 0;
  std::string method;  // "graph", "loop" or "host clock"
};

class Device {
 public:
  virtual ~Device() = default;
  const Machine& machine() const { return machine_; }
  size_t arena_bytes() const { return arena_bytes_; }
  virtual Stream stream() = 0;

  // Forgets what take() gave out. All memory holds bf16 values in (-1, 1) then.
  void begin_case();
  // Device memory, 256-byte aligned; ArenaIsFull when there is not enough.
  void* take(size_t bytes);
  template <typename T>
  T* take_of(int64_t count) {
    return static_cast<T*>(take(static_cast<size_t>(count) * sizeof(T)));
  }
  template <typename T>
  T* upload(const std::vector<T>& values) {
    T* const to = take_of<T>(static_cast<int64_t>(values.size()));
    write(to, values.data(), values.size() * sizeof(T));
    return to;
  }

  virtual void write(void* to, const void* from, size_t bytes) = 0;  // from the host
  virtual void zero(void* to, size_t bytes) = 0;
  // float32, near a normal distribution of this deviation.
  virtual void fill_normal(float* to, int64_t count, float deviation, uint64_t seed) = 0;

  // launch(i) is called with 0, 1, ..., copies - 1, 0, ...: each copy has inputs of its own.
  virtual Timing time(int copies, const std::function<void(int)>& launch) = 0;
  // Bytes read and written a second by a copy within the memory, and read by a kernel that only reads.
  virtual double copy_bytes_per_second() = 0;
  virtual double read_bytes_per_second() = 0;

 protected:
  virtual void fill_uniform_bf16(void* to, size_t bytes) = 0;
  Machine machine_;
  char* arena_ = nullptr;
  size_t arena_bytes_ = 0, used_bytes_ = 0;
};

struct ArenaIsFull {
  size_t wanted_bytes = 0;
};

// The device that the program was linked with. Toy: a small arena. nullptr: there is none, and `problem` says why.
Device* open_device(bool is_toy, std::string* problem);

Timing summarise(std::vector<double> samples, int num_launches, const char* method);

}  // namespace quire::bench
