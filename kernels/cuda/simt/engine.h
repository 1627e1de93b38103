// The emulation of one GPU on one OS thread: every CUDA thread of a block is a fiber, blocks run one after the other.
//
// Decides: which thread runs next, what barriers and warp collectives wait for, when asynchronous work lands (as late
// as allowed), what a stuck or broken kernel is told. Does not know: what a collective computes (*_emulation.h). All
// state belongs to the calling OS thread, so several of them can launch at once. Errors are exceptions, and the next
// launch works. Sanitizers: AddressSanitizer is told of every stack switch; ThreadSanitizer sees each fiber as a thread
// and each barrier as the only order between them, so a missing barrier is reported as a data race.
// This file must be included by g++ only; nvcc has the real thing.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <vector>

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

namespace quire::simt {

inline constexpr size_t kMaxSharedBytes = size_t{227} << 10;  // of a block, as Hopper has it

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
  uint64_t launches = 0, threads = 0;
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
// not wait only counts (bar.arrive). Returns whether any thread brought a true predicate.
bool barrier(int id, unsigned threads, bool wait, bool predicate, Loc loc);

// The lanes of mask, of this warp or of all warps of its group of num_warps, meet, each with a record; the last to come
// runs its function over all records (null: not in mask). No function: __syncwarp, which alone orders memory.
using Collective = std::function<void(void* const* records)>;
void collective(unsigned num_warps, uint32_t mask, const char* name, void* record, const Collective& run, Loc loc);

template <typename Record>
struct Records {
  void* const* all;

  Record* operator[](size_t thread) const { return static_cast<Record*>(all[thread]); }
};
template <unsigned kWarps = 1, typename Record, typename Run>
void collective(uint32_t mask, const char* name, Record* record, Loc loc, const Run& run) {
  collective(kWarps, mask, name, record, [&run](void* const* records) { run(Records<Record>{records}); }, loc);
}

void wait_for(const void* key, const char* name, Loc loc);  // until somebody calls wake(key)
void wake(const void* key);
// Asynchronous work of the block: done when no thread can run, one piece at a time, in an order that follows Order.
void defer(std::function<void()> work);

// Asynchronous work that is done by whoever waits for its group, and no sooner.
class LateWork {
 public:
  void add(std::function<void()> work) { pieces_.push_back({std::move(work), committed_}); }
  void commit() { ++committed_; }
  void wait(int newer_groups);  // all but the newest groups are done then

 private:
  struct Piece {
    std::function<void()> work;
    int group;
  };
  std::vector<Piece> pieces_;
  int committed_ = 0;
};
LateWork& late_copies();  // of the running thread

unsigned thread_index();  // in the block
uint64_t block_serial();  // differs between all blocks this OS thread has run
unsigned char* shared_memory();
size_t shared_memory_bytes();
void check_shared(const void* address, size_t bytes, size_t alignment, const char* name, Loc loc);
void check_aligned(const void* address, size_t alignment, const char* name, Loc loc);

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
