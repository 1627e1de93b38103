// Scheduler, barriers and collectives of the emulation; the fibers themselves are in fiber.h.
//
// Ready threads are bits, one word a warp, so that releasing a barrier is an OR and choosing the next thread is a count
// of zeros. Compile this file without -fsanitize=thread (with -fsanitize=address is fine): the scheduler is not the
// program whose races are looked for. Which sanitizer runs is found by weak symbols at run time.
#include "cuda/simt/engine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "cuda/simt/fiber.h"

namespace quire::simt {
namespace {

constexpr unsigned kBarriers = 16;
constexpr size_t kMaxSharedBytes = 227 << 10, kPage = 4096;
constexpr unsigned kSwitchWithoutOrder = 1;  // __tsan_switch_to_fiber_no_sync
constexpr int kMaxIdleYields = 1 << 20;

enum class State : uint8_t { ready, barrier, warp, warpgroup, key, returned };

struct Fiber {
  Context context{};
  char* stack = nullptr;
  void* fake_stack = nullptr;
  void* tsan = nullptr;
  uint3 thread{};
  unsigned index = 0;
  State state = State::returned;
  int barrier = 0;
  uint32_t mask = 0;
  const char* name = nullptr;
  void* record = nullptr;
  const void* key = nullptr;
  Loc loc;
  std::vector<AsyncCopy> copies;
  int groups = 0;
  int quiet = 0;  // how many Quiet objects live on it

  unsigned warp() const { return index / 32; }
  uint32_t bit() const { return 1u << (index % 32); }
};

struct Barrier {
  char order[2] = {};  // for ThreadSanitizer: in turn, because a thread may reach the next one before others left this
  unsigned generation = 0, arrived = 0, expected = 0;
  ThreadSet waiting;
  BarrierResult collecting{0, 1, 0}, result;
  Loc loc;
};

struct Warp {
  char order[3] = {};
  unsigned generation = 0;
  uint32_t pending = 0, alive = 0;
};

struct Warpgroup {
  unsigned arrived = 0;
};

// Ends one AnnotateIgnore*Begin of ThreadSanitizer.
void look_again() {
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}

bool same_place(const Loc& a, const Loc& b) {
  return a.line() == b.line() && (a.file_name() == b.file_name() || !std::strcmp(a.file_name(), b.file_name()));
}

std::string place(const Loc& loc) { return str_cat(loc.file_name(), ":", loc.line()); }
std::string index3(const char* name, const uint3& i) { return str_cat(name, " ", i.x, ",", i.y, ",", i.z); }

class Engine {
 public:
  Engine() = default;
  ~Engine();
  void run(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*), const void* args);

  BarrierResult barrier(int id, unsigned threads, bool wait, bool predicate, const Loc& loc);
  void warp_collective(uint32_t mask, const char* name, void* record, Collective run, const Loc& loc);
  void warpgroup_collective(const char* name, void* record, Collective run, const Loc& loc);
  void wait_for(const void* key, const char* name, const Loc& loc);
  void wake(const void* key);
  void yield();

  Order order = Order::forward;
  uint64_t random_state = 1;
  Counters counters;
  Fiber* current = nullptr;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  uint64_t serial = 0;
  std::vector<std::function<void()>> deferred;

 private:
  static void entry();
  uint32_t random();
  void prepare(unsigned threads);
  void start_block(const dim3& block);
  void run_block(const dim3& block);
  void abandon_fibers();
  bool land_one();
  Fiber* next();
  void switch_to(Fiber* to);
  void wait(State state, const Loc& loc);
  void resume(unsigned warp, uint32_t lanes);
  void release_barrier(Barrier* barrier);
  bool complete(uint32_t mask, const char* name, Collective run, const Loc& loc);
  void finish();
  void check_nobody_waits() const;
  std::string stuck() const;
  std::string describe(const Fiber& fiber) const;

  std::vector<std::unique_ptr<Fiber>> fibers_;  // parked fibers hold pointers, so they never move
  size_t stack_bytes_ = 0;
  Fiber main_;
  const void* main_stack_ = nullptr;
  size_t main_stack_bytes_ = 0;
  unsigned threads_ = 0, returned_ = 0;
  int idle_yields_ = 0;
  ThreadSet ready_, yielded_;
  Warp warps_[kMaxWarps];
  Warpgroup warpgroups_[kMaxWarps / 4];
  Barrier barriers_[kBarriers];
  char block_begin_ = 0, block_end_ = 0;  // for ThreadSanitizer
  void (*body_)(const void*) = nullptr;
  const void* args_ = nullptr;
  std::exception_ptr error_;
};

Engine& engine() {
  thread_local const auto instance = std::make_unique<Engine>();  // on the heap: plugins get few bytes of static TLS
  return *instance;
}

Engine::~Engine() {
  for (auto& fiber : fibers_) {
    if (__tsan_destroy_fiber) __tsan_destroy_fiber(fiber->tsan);
    munmap(fiber->stack - kPage, stack_bytes_ + kPage);
  }
}

uint32_t Engine::random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<uint32_t>(random_state >> 20);
}

bool Engine::land_one() {
  if (deferred.empty()) return false;
  const Quiet quiet;
  const size_t count = deferred.size();
  const size_t chosen = order == Order::forward ? 0 : order == Order::reverse ? count - 1 : random() % count;
  const std::function<void()> work = std::move(deferred[chosen]);
  deferred.erase(deferred.begin() + static_cast<std::ptrdiff_t>(chosen));
  idle_yields_ = 0;
  work();
  return true;
}

// The thread to run now; the launching code when none can.
Fiber* Engine::next() {
  while (!ready_.warps && land_one()) {
  }
  if (!ready_.warps && yielded_.warps && ++idle_yields_ < kMaxIdleYields) yielded_.move_to(&ready_);
  if (!ready_.warps) return &main_;
  const unsigned index = order == Order::forward   ? ready_.lowest()
                         : order == Order::reverse ? ready_.highest()
                                                   : ready_.any(random());
  ready_.remove(index);
  return fibers_[index].get();
}

void Engine::switch_to(Fiber* to) {
  Fiber* const from = current;
  if (to == from) return;
  current = to;
  threadIdx = to->thread;
  ++counters.switches;
  if (__sanitizer_start_switch_fiber) {
    const bool to_main = to == &main_;
    __sanitizer_start_switch_fiber(&from->fake_stack, to_main ? main_stack_ : to->stack,
                                   to_main ? main_stack_bytes_ : stack_bytes_);
  }
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(to->tsan, kSwitchWithoutOrder);
  swap_context(&from->context, &to->context);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
}

// The caller has noted itself where it will be found.
void Engine::wait(State state, const Loc& loc) {
  current->state = state;
  current->loc = loc;
  switch_to(next());
}

void Engine::resume(unsigned warp, uint32_t lanes) { ready_.add(warp, lanes); }

void Engine::yield() {
  current->state = State::ready;
  yielded_.add(current->warp(), current->bit());
  switch_to(next());
}

// A fiber lives for many blocks: it runs one thread of each.
void Engine::entry() {
  Engine& self = engine();
  if (__sanitizer_finish_switch_fiber) {
    const void* bottom = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (!self.main_stack_) {  // the very first switch comes from the launching code
      self.main_stack_ = bottom;
      self.main_stack_bytes_ = bytes;
    }
  }
  for (;;) {
    acquire(&self.block_begin_);
    try {
      self.body_(self.args_);
      self.check_nobody_waits();
    } catch (...) {
      if (!self.error_) self.error_ = std::current_exception();
    }
    release(&self.block_end_);
    self.finish();
  }
}

void Engine::check_nobody_waits() const {
  const Warp& warp = warps_[current->warp()];
  for (uint32_t lanes = warp.pending; lanes; lanes &= lanes - 1) {
    const Fiber& other = *fibers_[current->warp() * 32 + static_cast<unsigned>(std::countr_zero(lanes))];
    if (other.mask & current->bit()) {
      fail(str_cat(other.name, " waits for lane ", current->index % 32, ", which has returned"), other.loc);
    }
  }
}

void Engine::finish() {
  current->state = State::returned;
  ++returned_;
  warps_[current->warp()].alive &= ~current->bit();
  Barrier& whole = barriers_[0];
  if (whole.arrived && !whole.expected && whole.arrived == threads_ - returned_) release_barrier(&whole);
  switch_to(error_ ? &main_ : next());
}

void Engine::release_barrier(Barrier* barrier) {
  ++barrier->generation;
  ++counters.barriers;
  idle_yields_ = 0;
  barrier->result = barrier->collecting;
  barrier->collecting = {0, 1, 0};
  barrier->arrived = barrier->expected = 0;
  barrier->waiting.move_to(&ready_);
}

BarrierResult Engine::barrier(int id, unsigned threads, bool wait_here, bool predicate, const Loc& loc) {
  if (id < 0 || id >= static_cast<int>(kBarriers)) fail(str_cat("barrier ", id, ": there are 16"), loc);
  if (threads % 32 || threads > threads_) fail(str_cat("barrier of ", threads, " threads"), loc);
  Barrier& barrier = barriers_[id];
  if (barrier.arrived && barrier.expected != threads) {
    fail(str_cat("barrier ", id, " is awaited with another number of threads at ", place(barrier.loc)), loc);
  }
  if (barrier.arrived && !threads && !same_place(barrier.loc, loc)) {
    fail(str_cat("divergent __syncthreads: other threads of the block are at ", place(barrier.loc)), loc);
  }
  char* const order = &barrier.order[barrier.generation & 1];
  release(order);
  barrier.loc = loc;
  barrier.expected = threads;
  barrier.collecting.any |= predicate;
  barrier.collecting.all &= predicate;
  barrier.collecting.count += predicate;
  current->barrier = id;
  if (wait_here) barrier.waiting.add(current->warp(), current->bit());
  if (++barrier.arrived == (threads ? threads : threads_ - returned_)) release_barrier(&barrier);
  if (!wait_here) return {};
  wait(State::barrier, loc);
  acquire(order);
  return barrier.result;
}

// Runs the collective if the current lane was the last to come.
bool Engine::complete(uint32_t mask, const char* name, Collective run, const Loc& loc) {
  Warp& warp = warps_[current->warp()];
  if ((warp.pending & mask) != mask) return false;
  void* records[32] = {};
  for (uint32_t lanes = mask; lanes; lanes &= lanes - 1) {
    const unsigned lane = static_cast<unsigned>(std::countr_zero(lanes));
    const Fiber& other = *fibers_[current->warp() * 32 + lane];
    if (other.mask != mask || other.name != name) return false;
    if (run && !same_place(other.loc, loc)) {
      fail(str_cat("divergent ", name, ": lane ", lane, " is at ", place(other.loc)), loc);
    }
    records[lane] = other.record;
  }
  if (run) {
    const Quiet quiet;
    run(records);
  } else if (mask == ~0u) {
    ++warp.generation;
  }
  ++counters.collectives;
  idle_yields_ = 0;
  warp.pending &= ~mask;
  resume(current->warp(), mask);
  return true;
}

// run == nullptr: __syncwarp, which alone orders memory.
void Engine::warp_collective(uint32_t mask, const char* name, void* record, Collective run, const Loc& loc) {
  Warp& warp = warps_[current->warp()];
  if (!(mask & current->bit())) fail(str_cat(name, ": lane ", current->index % 32, " is not in its own mask"), loc);
  if (mask & ~warp.alive) {
    fail(str_cat(name, " names lane ", std::countr_zero(mask & ~warp.alive), ", which has returned or never was"), loc);
  }
  char* const order = run ? nullptr : &warp.order[mask == ~0u ? warp.generation & 1 : 2];
  if (order) release(order);
  current->mask = mask;
  current->name = name;
  current->record = record;
  current->loc = loc;
  warp.pending |= current->bit();
  complete(mask, name, run, loc);
  wait(State::warp, loc);
  if (order) acquire(order);
}

void Engine::warpgroup_collective(const char* name, void* record, Collective run, const Loc& loc) {
  const unsigned first = current->index / 128 * 128;
  Warpgroup& group = warpgroups_[current->index / 128];
  if (first + 128 > threads_) fail(str_cat(name, " needs a warpgroup of 128 threads"), loc);
  current->name = name;
  current->record = record;
  current->loc = loc;
  if (++group.arrived == 128) {
    void* records[128];
    for (unsigned i = 0; i < 128; i++) {
      const Fiber& other = *fibers_[first + i];
      if (other.name != name || !same_place(other.loc, loc)) {
        fail(str_cat("divergent ", name, ": thread ", first + i, " is at ", place(other.loc)), loc);
      }
      records[i] = other.record;
    }
    const Quiet quiet;
    run(records);
    ++counters.collectives;
    group.arrived = 0;
    for (unsigned warp = first / 32; warp < first / 32 + 4; warp++) resume(warp, ~0u);
  }
  wait(State::warpgroup, loc);
}

void Engine::wait_for(const void* key, const char* name, const Loc& loc) {
  current->key = key;
  current->name = name;
  wait(State::key, loc);
}

void Engine::wake(const void* key) {
  for (unsigned i = 0; i < threads_; i++) {
    Fiber& fiber = *fibers_[i];
    if (fiber.state != State::key || fiber.key != key) continue;
    fiber.state = State::ready;
    resume(fiber.warp(), fiber.bit());
  }
}

std::string Engine::describe(const Fiber& fiber) const {
  switch (fiber.state) {
    case State::returned:
      return "returned";
    case State::ready:
      return "spinning";
    case State::barrier:
      return str_cat("at barrier ", fiber.barrier, ", ", place(fiber.loc));
    case State::warp: {
      char mask[16];
      std::snprintf(mask, sizeof mask, "%08x", fiber.mask);
      return str_cat("in ", fiber.name, " with mask ", mask, ", ", place(fiber.loc));
    }
    default:
      return str_cat("in ", fiber.name, ", ", place(fiber.loc));
  }
}

std::string Engine::stuck() const {
  std::map<std::string, unsigned> counts;
  for (unsigned i = 0; i < threads_; i++) ++counts[describe(*fibers_[i])];
  std::string text = str_cat("kernel is stuck in ", index3("block", blockIdx), ":");
  for (const auto& [what, count] : counts) text += str_cat("\n  ", count, count == 1 ? " thread " : " threads ", what);
  return text;
}

void Engine::prepare(unsigned threads) {
  if (!stack_bytes_) {
    stack_bytes_ = __sanitizer_start_switch_fiber ? 256 << 10 : 64 << 10;
    main_.tsan = __tsan_get_current_fiber ? __tsan_get_current_fiber() : nullptr;
  }
  while (fibers_.size() < threads) {
    void* const map =
        mmap(nullptr, stack_bytes_ + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    mprotect(map, kPage, PROT_NONE);  // an overflow of the stack faults
    auto fiber = std::make_unique<Fiber>();
    fiber->stack = static_cast<char*>(map) + kPage;
    fiber->index = static_cast<unsigned>(fibers_.size());
    if (__tsan_create_fiber) fiber->tsan = __tsan_create_fiber(0);
    seed_context(&fiber->context, fiber->stack, stack_bytes_, &Engine::entry);
    fibers_.push_back(std::move(fiber));
  }
}

// After an error: the threads that were under way never go on, so their frames are forgotten.
void Engine::abandon_fibers() {
  for (auto& fiber : fibers_) {
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(fiber->stack, stack_bytes_);
    if (__tsan_create_fiber) {  // in its name, say that all it did happened before what follows
      __tsan_switch_to_fiber(fiber->tsan, kSwitchWithoutOrder);
      for (; fiber->quiet; fiber->quiet--) look_again();
      release(&block_end_);
      __tsan_switch_to_fiber(main_.tsan, kSwitchWithoutOrder);
      __tsan_destroy_fiber(fiber->tsan);
      fiber->tsan = __tsan_create_fiber(0);
    }
    fiber->fake_stack = nullptr;
    seed_context(&fiber->context, fiber->stack, stack_bytes_, &Engine::entry);
  }
  acquire(&block_end_);
}

void Engine::start_block(const dim3& block) {
  ++serial;
  std::memset(shared, 0xFF, shared_bytes);
  returned_ = 0;
  idle_yields_ = 0;
  ready_ = yielded_ = {};
  for (auto& barrier : barriers_) barrier = {};
  for (auto& group : warpgroups_) group = {};
  for (unsigned warp = 0; warp < (threads_ + 31) / 32; warp++) {
    const unsigned lanes = std::min(32u, threads_ - warp * 32);
    warps_[warp] = {};
    warps_[warp].alive = lanes == 32 ? ~0u : (1u << lanes) - 1;
    ready_.add(warp, warps_[warp].alive);
  }
  uint3 thread{};
  for (unsigned i = 0; i < threads_; i++) {
    Fiber& fiber = *fibers_[i];
    fiber.thread = thread;
    fiber.state = State::ready;
    fiber.copies.clear();
    fiber.groups = 0;
    if (++thread.x == block.x) thread.x = 0, ++thread.y;
    if (thread.y == block.y) thread.y = 0, ++thread.z;
  }
}

void Engine::run_block(const dim3& block) {
  start_block(block);
  release(&block_begin_);
  switch_to(next());
  acquire(&block_end_);
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  if (returned_ != threads_) throw KernelError(stuck());
  if (!deferred.empty()) throw KernelError("the block ended before its asynchronous copies");
}

void Engine::run(dim3 grid, dim3 block, size_t bytes, void (*body)(const void*), const void* args) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (current) throw KernelError("a kernel cannot launch a kernel");
  if (!threads || threads > kMaxThreads || block.z > 64 || bytes > kMaxSharedBytes || !grid.x || !grid.y || !grid.z ||
      grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    throw KernelError(str_cat("invalid launch: grid ", grid.x, "x", grid.y, "x", grid.z, ", block ", block.x, "x",
                              block.y, "x", block.z, ", ", bytes, " bytes of shared memory"));
  }
  threads_ = static_cast<unsigned>(threads);
  prepare(threads_);
  // A heap block of the exact size, so that AddressSanitizer sees an overrun.
  void* memory = nullptr;
  if (posix_memalign(&memory, 1024, bytes ? bytes : 1)) throw std::bad_alloc();
  const std::unique_ptr<void, decltype(&std::free)> owner(memory, &std::free);
  shared = static_cast<unsigned char*>(memory);
  shared_bytes = bytes;
  body_ = body;
  args_ = args;
  gridDim = grid;
  blockDim = block;
  ++counters.launches;
  counters.threads += threads * grid.x * grid.y * grid.z;
  current = &main_;
  try {
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++) {
      for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++) {
        for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) run_block(block);
      }
    }
  } catch (...) {
    abandon_fibers();
    deferred.clear();
    current = nullptr;
    shared = nullptr;
    throw;
  }
  current = nullptr;
  shared = nullptr;
}

}  // namespace

void set_order(Order order, uint64_t seed) {
  engine().order = order;
  engine().random_state = seed * 0x9e3779b97f4a7c15u | 1;
}

Counters counters() { return engine().counters; }

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*), const void* args) {
  engine().run(grid, block, shared_bytes, body, args);
}

void fail(const std::string& what, Loc loc) {
  throw KernelError(
      str_cat(place(loc), ": ", what, " (", index3("block", blockIdx), ", ", index3("thread", threadIdx), ")"));
}

BarrierResult barrier(int id, unsigned threads, bool wait, bool predicate, Loc loc) {
  return engine().barrier(id, threads, wait, predicate, loc);
}
void warp_collective(uint32_t mask, const char* name, void* record, Collective run, Loc loc) {
  engine().warp_collective(mask, name, record, run, loc);
}
void warpgroup_collective(const char* name, void* record, Collective run, Loc loc) {
  engine().warpgroup_collective(name, record, run, loc);
}
void wait_for(const void* key, const char* name, Loc loc) { engine().wait_for(key, name, loc); }
void wake(const void* key) { engine().wake(key); }
void yield(Loc) { engine().yield(); }
void defer(std::function<void()> work) {
  const Quiet quiet;
  engine().deferred.push_back(std::move(work));
}

unsigned thread_index() { return engine().current->index; }
uint64_t block_serial() { return engine().serial; }
unsigned char* shared_memory() { return engine().shared; }
size_t shared_memory_bytes() { return engine().shared_bytes; }

void check_aligned(const void* address, size_t alignment, const char* name, Loc loc) {
  if (reinterpret_cast<uintptr_t>(address) % alignment) {
    fail(str_cat(name, ": address is not ", alignment, "-byte aligned"), loc);
  }
}

void check_shared(const void* address, size_t bytes, size_t alignment, const char* name, Loc loc) {
  check_aligned(address, alignment, name, loc);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address), shared = reinterpret_cast<uintptr_t>(engine().shared);
  if (begin < shared || begin + bytes > shared + engine().shared_bytes) {
    fail(str_cat(name, ": address is not in shared memory"), loc);
  }
}

void issue_copy(void* to, const void* from) {
  Fiber& fiber = *engine().current;
  fiber.copies.push_back({to, from, fiber.groups});
}

void commit_copies() { ++engine().current->groups; }

bool take_copy(int newer_groups, AsyncCopy* copy) {
  Fiber& fiber = *engine().current;
  if (fiber.copies.empty() || fiber.copies.front().group >= fiber.groups - newer_groups) return false;
  *copy = fiber.copies.front();
  fiber.copies.erase(fiber.copies.begin());
  return true;
}

void release(void* p) {
  if (__tsan_release) __tsan_release(p);
}
void acquire(void* p) {
  if (__tsan_acquire) __tsan_acquire(p);
}
Quiet::Quiet() {
  if (!AnnotateIgnoreReadsBegin) return;
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  if (engine().current) ++engine().current->quiet;
}
Quiet::~Quiet() {
  if (!AnnotateIgnoreReadsEnd) return;
  look_again();
  if (engine().current) --engine().current->quiet;
}

}  // namespace quire::simt
