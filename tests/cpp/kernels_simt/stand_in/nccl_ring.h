// What a test tells the NCCL of nccl_ring.cpp and asks of it; the C functions below are found by dlsym.
#pragma once

#include <cstddef>
#include <functional>
#include <span>

namespace quire::nccl_ring {

// The emulated runtime, which the library is not linked with.
struct Runtime {
  // Puts work(i) on stream i, behind what all of them hold now.
  bool (*enqueue_on_all)(std::span<void* const> streams, const std::function<void(size_t)>& work) = nullptr;
};

struct Counts {
  int communicators = 0;  // alive
  int inits = 0, aborts = 0, groups = 0;
};

struct Control {
  void (*reset)(const Runtime& runtime) = nullptr;  // counts from zero, no failures to come
  // The n-th such call ("ncclAllReduce", "ncclGroupEnd", ...) of this rank from now (1: the next) answers `result`; the
  // rank of calls that are not one rank's is 0.
  void (*fail)(const char* call, int rank, int n, int result) = nullptr;
  Counts (*counts)() = nullptr;
};

}  // namespace quire::nccl_ring

extern "C" const quire::nccl_ring::Control* quire_nccl_ring_control();
