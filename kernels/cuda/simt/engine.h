// The emulation of one GPU on one OS thread: every CUDA thread of a block is a fiber, blocks run one after the other.
//
// Decides: which thread runs next, what barriers and warp collectives wait for, when asynchronous work lands (as late
// as allowed), what a stuck or broken kernel is told. Does not know: what a collective computes (tc.h, hopper.h,
// simt.h). All state belongs to the calling OS thread, so several of them can launch at once. Errors are exceptions,
// and the next launch works. Sanitizers: AddressSanitizer is told of every stack switch; ThreadSanitizer sees each
// fiber as a thread and each barrier as the only order between them, so a missing barrier is reported as a data race.
// This file must be included by g++ only; nvcc has the real thing.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>

#include "base/check.h"

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// initial-exec keeps an access at one instruction in position-independent code too.
#define QUIRE_SIMT_THREAD_LOCAL constinit thread_local __attribute__((tls_model("initial-exec")))
inline QUIRE_SIMT_THREAD_LOCAL uint3 threadIdx{}, blockIdx{};
inline QUIRE_SIMT_THREAD_LOCAL dim3 blockDim{}, gridDim{};
inline constexpr int warpSize = 32;

namespace quire::simt {

// Where in a kernel something was called; every primitive takes it as a defaulted last argument.
using Loc = std::source_location;

// What a kernel did wrong: file:line, what, block and thread.
class KernelError : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

// Which of the threads that can run goes next: the lowest index, the highest, or any. Results must not depend on it.
// The first two let one warp run as far ahead of the others as the barriers allow.
enum class Order { forward, reverse, random };
void set_order(Order order, uint64_t seed = 1);

struct Counters {
  uint64_t launches = 0, threads = 0, switches = 0, barriers = 0, collectives = 0;
};
Counters counters();

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*), const void* args);

// A launch on a stream goes to the runtime that made the stream (cudart_emu), which copies the arguments and runs the
// kernel later; without one, or without a stream, the kernel runs at once.
struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  void (*body)(const void*);
  const void* args;
  size_t args_bytes, args_alignment;
  const char* launcher;  // for kernel_name()
};
using LaunchHook = void (*)(void* stream, const Launch& launch);
inline std::atomic<LaunchHook> launch_hook{nullptr};

// Everything below is called by the threads of a running kernel.
[[noreturn]] void fail(const std::string& what, Loc loc);

// Barrier `id` of the block, 0 to 15. threads == 0: all threads that have not returned (only id 0). A thread that does
// not wait only counts (bar.arrive).
struct BarrierResult {
  unsigned any = 0, all = 0, count = 0;
};
BarrierResult barrier(int id, unsigned threads, bool wait, bool predicate, Loc loc);

// The lanes of mask meet, each with a record; the last to come runs the function over all records (null: not in mask).
using Collective = void (*)(void* const* records);
void warp_collective(uint32_t mask, const char* name, void* record, Collective run, Loc loc);
// The same for the 128 threads of a warpgroup.
void warpgroup_collective(const char* name, void* record, Collective run, Loc loc);

void wait_for(const void* key, const char* name, Loc loc);  // until somebody calls wake(key)
void wake(const void* key);
void yield(Loc loc);  // runs again when nobody else can
// Asynchronous work of the block: done when no thread can run, one piece at a time, in an order that follows Order.
void defer(std::function<void()> work);

unsigned thread_index();  // in the block
uint64_t block_serial();  // differs between all blocks this OS thread has run
unsigned char* shared_memory();
size_t shared_memory_bytes();
void check_shared(const void* address, size_t bytes, size_t alignment, const char* name, Loc loc);
void check_aligned(const void* address, size_t alignment, const char* name, Loc loc);

// cp.async of the running thread. A copy lands when its group is waited for.
struct AsyncCopy {
  void* to;
  const void* from;  // null: 16 zero bytes
  int group;
};
void issue_copy(void* to, const void* from);
void commit_copies();
bool take_copy(int newer_groups, AsyncCopy* copy);  // the next copy of a group that must have landed

// ThreadSanitizer: what happened before release(p) happened before the return of a later acquire(p). Between the life
// and the death of a Quiet it looks away.
void release(void* p);
void acquire(void* p);
class Quiet {
 public:
  Quiet();
  ~Quiet();
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;
};

}  // namespace quire::simt
