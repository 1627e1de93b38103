// Scheduler, barriers and collectives of the emulation; the stacks themselves are in fiber.h.
//
// Ready threads are bits, one word a warp, so that releasing a barrier is an OR and choosing the next thread is a count
// of zeros. Compile this file without -fsanitize=thread (with -fsanitize=address is fine): the scheduler is not the
// program whose races are looked for. Which sanitizer runs is found by weak symbols at run time.
#include "cuda/simt/engine.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iomanip>
#include <map>
#include <memory>
#include <random>
#include <utility>

#include "cuda/simt/fiber.h"

namespace quire::simt {
namespace {

constexpr unsigned kBarriers = 16;

enum class State : uint8_t { ready, barrier, collective, key, returned };

// A thread of the block, and where it waits.
struct Fiber {
  Stack stack;
  uint3 thread{};
  unsigned index = 0;
  State state = State::returned;
  int barrier = 0;
  uint32_t mask = 0;
  const char* name = nullptr;
  void* record = nullptr;
  const void* key = nullptr;
  Loc loc;
  LateWork copies;
  int quiet = 0;  // how many Quiet objects live on it

  unsigned warp() const { return index / 32; }
  unsigned lane() const { return index % 32; }
  uint32_t bit() const { return 1u << lane(); }
};

struct Barrier {
  char order[2] = {};  // for ThreadSanitizer: in turn, because a thread may reach the next one before others left this
  unsigned generation = 0, arrived = 0, expected = 0;
  ThreadSet waiting;
  bool any = false, result = false;
  Loc loc;
};

struct Warp {
  char order[3] = {};
  unsigned generation = 0;
  uint32_t pending = 0, alive = 0;
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

struct Engine {
  Order order = Order::forward;
  std::mt19937 random;
  Counters counters;
  Fiber main;  // the launching code
  Fiber* current = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers;  // parked fibers hold pointers, so they never move
  void (*body)(const void*) = nullptr;
  const void* args = nullptr;
  std::exception_ptr error;

  // Of the block that runs.
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  uint64_t serial = 0;
  unsigned threads = 0, returned = 0;
  ThreadSet ready;
  Warp warps[kMaxWarps];
  Barrier barriers[kBarriers];
  std::vector<std::function<void()>> deferred;
  char begin_order = 0, end_order = 0;  // for ThreadSanitizer

  static void entry();
  void run_blocks();
  void run_block();
  void start_block();
  void abandon_fibers();
  bool land_one();
  Fiber* next();
  void switch_to(Fiber* to);
  void wait(State state, const Loc& loc);
  void finish();
  void release_barrier(Barrier* barrier);
  void complete(unsigned first_warp, unsigned num_warps, const Collective& run);
  void check_nobody_waits() const;
  std::string stuck() const;
};

Engine& engine() {
  thread_local const auto instance = std::make_unique<Engine>();  // on the heap: plugins get few bytes of static TLS
  return *instance;
}

bool Engine::land_one() {
  if (deferred.empty()) return false;
  const Quiet quiet;
  const size_t count = deferred.size();
  const size_t chosen = order == Order::forward ? 0 : order == Order::reverse ? count - 1 : random() % count;
  const std::function<void()> work = std::move(deferred[chosen]);
  deferred.erase(deferred.begin() + static_cast<std::ptrdiff_t>(chosen));
  work();
  return true;
}

// The thread to run now; the launching code when none can.
Fiber* Engine::next() {
  while (!ready.warps && land_one()) {
  }
  if (!ready.warps) return &main;
  const uint32_t turn = order == Order::random ? static_cast<uint32_t>(random()) : 0;
  const unsigned index = order == Order::reverse ? ready.highest() : ready.from(turn);
  ready.remove(index);
  return fibers[index].get();
}

void Engine::switch_to(Fiber* to) {
  Fiber* const from = std::exchange(current, to);
  if (to == from) return;
  threadIdx = to->thread;
  from->stack.switch_to(&to->stack);
}

// The caller has noted itself where it will be found.
void Engine::wait(State state, const Loc& loc) {
  current->state = state;
  current->loc = loc;
  switch_to(next());
}

// A fiber lives for many blocks: it runs one thread of each.
void Engine::entry() {
  Engine& e = engine();
  Stack::begin(&e.main.stack);
  for (;;) {
    acquire(&e.begin_order);
    try {
      e.body(e.args);
      e.check_nobody_waits();
    } catch (...) {
      if (!e.error) e.error = std::current_exception();
    }
    release(&e.end_order);
    e.finish();
  }
}

void Engine::check_nobody_waits() const {
  for (uint32_t lanes = warps[current->warp()].pending; lanes; lanes &= lanes - 1) {
    const Fiber& other = *fibers[current->warp() * 32 + static_cast<unsigned>(std::countr_zero(lanes))];
    if (other.mask & current->bit()) {
      fail(str_cat(other.name, " waits for lane ", current->lane(), ", which has returned"), other.loc);
    }
  }
}

void Engine::finish() {
  current->state = State::returned;
  ++returned;
  warps[current->warp()].alive &= ~current->bit();
  Barrier& whole = barriers[0];
  if (whole.arrived && !whole.expected && whole.arrived == threads - returned) release_barrier(&whole);
  switch_to(error ? &main : next());
}

void Engine::release_barrier(Barrier* barrier) {
  ++barrier->generation;
  barrier->result = std::exchange(barrier->any, false);
  barrier->arrived = barrier->expected = 0;
  barrier->waiting.move_to(&ready);
}

// Runs the collective if the current thread was the last of those it names to come.
void Engine::complete(unsigned first_warp, unsigned num_warps, const Collective& run) {
  const uint32_t mask = current->mask;
  Warp* const group = warps + first_warp;
  if (std::any_of(group, group + num_warps, [mask](const Warp& warp) { return mask & ~warp.pending; })) return;
  void* records[128];
  for (unsigned i = 0; i < num_warps * 32; i++) {
    records[i] = nullptr;
    if (!(mask >> i % 32 & 1)) continue;
    const Fiber& other = *fibers[first_warp * 32 + i];
    if (other.mask != mask || other.name != current->name) return;
    if (run && !same_place(other.loc, current->loc)) {
      fail(str_cat("divergent ", other.name, ": lane ", other.lane(), " of warp ", other.warp(), " is at ",
                   place(other.loc)),
           current->loc);
    }
    records[i] = other.record;
  }
  if (run) {
    const Quiet quiet;
    run(records);
  } else if (mask == ~0u) {
    ++group->generation;
  }
  for (unsigned warp = first_warp; warp < first_warp + num_warps; warp++) {
    warps[warp].pending &= ~mask;
    ready.add(warp, mask);
  }
}

std::string describe(const Fiber& fiber) {
  switch (fiber.state) {
    case State::returned:
      return "returned";
    case State::barrier:
      return str_cat("at barrier ", fiber.barrier, ", ", place(fiber.loc));
    case State::collective:
      return str_cat("in ", fiber.name, " with mask ", std::hex, std::setfill('0'), std::setw(8), fiber.mask, ", ",
                     place(fiber.loc));
    default:
      return str_cat("in ", fiber.name, ", ", place(fiber.loc));
  }
}

std::string Engine::stuck() const {
  std::map<std::string, unsigned> counts;
  for (unsigned i = 0; i < threads; i++) ++counts[describe(*fibers[i])];
  std::string text = str_cat("kernel is stuck in ", index3("block", blockIdx), ":");
  for (const auto& [what, count] : counts) text += str_cat("\n  ", count, count == 1 ? " thread " : " threads ", what);
  return text;
}

// After an error: the threads that were under way never go on, so their frames are forgotten.
void Engine::abandon_fibers() {
  for (auto& fiber : fibers) {
    fiber->stack.pose();  // in its name, say that all it did happened before what follows
    for (; fiber->quiet; fiber->quiet--) look_again();
    release(&end_order);
    main.stack.pose();
    fiber->stack.restart(&Engine::entry);
  }
  acquire(&end_order);
}

void Engine::start_block() {
  ++serial;
  std::memset(shared, 0xFF, shared_bytes);
  returned = 0;
  ready = {};
  std::fill(std::begin(barriers), std::end(barriers), Barrier{});
  std::fill(std::begin(warps), std::end(warps), Warp{});
  uint3 thread{};
  for (unsigned i = 0; i < threads; i++) {
    Fiber& fiber = *fibers[i];
    fiber.thread = thread;
    fiber.state = State::ready;
    fiber.copies = {};
    warps[fiber.warp()].alive |= fiber.bit();
    ready.add(fiber.warp(), fiber.bit());
    if (++thread.x == blockDim.x) thread.x = 0, ++thread.y;
    if (thread.y == blockDim.y) thread.y = 0, ++thread.z;
  }
}

void Engine::run_block() {
  start_block();
  release(&begin_order);
  switch_to(next());
  acquire(&end_order);
  if (error) std::rethrow_exception(std::exchange(error, nullptr));
  if (returned != threads) throw KernelError(stuck());
  if (!deferred.empty()) throw KernelError("the block ended before its asynchronous copies");
}

void Engine::run_blocks() {
  current = &main;
  try {
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++) {
      for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++) {
        for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) run_block();
      }
    }
  } catch (...) {
    abandon_fibers();
    deferred.clear();
    error = std::current_exception();
  }
  current = nullptr;
  shared = nullptr;
  if (error) std::rethrow_exception(std::exchange(error, nullptr));
}

}  // namespace

void set_order(Order order, uint64_t seed) {
  engine().order = order;
  engine().random.seed(static_cast<uint32_t>(seed));
}

Counters counters() { return engine().counters; }

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*), const void* args) {
  Engine& e = engine();
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (e.current) throw KernelError("a kernel cannot launch a kernel");
  if (!threads || threads > kMaxThreads || block.z > 64 || shared_bytes > kMaxSharedBytes || !grid.x || !grid.y ||
      !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    throw KernelError(str_cat("invalid launch: grid ", grid.x, "x", grid.y, "x", grid.z, ", block ", block.x, "x",
                              block.y, "x", block.z, ", ", shared_bytes, " bytes of shared memory"));
  }
  e.body = body;
  e.args = args;
  e.threads = static_cast<unsigned>(threads);
  while (e.fibers.size() < threads) {
    auto fiber = std::make_unique<Fiber>();
    fiber->index = static_cast<unsigned>(e.fibers.size());
    fiber->stack.create(&Engine::entry);
    e.fibers.push_back(std::move(fiber));
  }
  // A heap block of the exact size, so that AddressSanitizer sees an overrun.
  void* memory = nullptr;
  if (posix_memalign(&memory, 1024, shared_bytes ? shared_bytes : 1)) throw std::bad_alloc();
  const std::unique_ptr<void, decltype(&std::free)> owner(memory, &std::free);
  e.shared = static_cast<unsigned char*>(memory);
  e.shared_bytes = shared_bytes;
  gridDim = grid;
  blockDim = block;
  ++e.counters.launches;
  e.counters.threads += threads * grid.x * grid.y * grid.z;
  e.run_blocks();
}

void fail(const std::string& what, Loc loc) {
  throw KernelError(
      str_cat(place(loc), ": ", what, " (", index3("block", blockIdx), ", ", index3("thread", threadIdx), ")"));
}

bool barrier(int id, unsigned threads, bool wait, bool predicate, Loc loc) {
  Engine& e = engine();
  if (id < 0 || id >= static_cast<int>(kBarriers)) fail(str_cat("barrier ", id, ": there are 16"), loc);
  if (threads % 32 || threads > e.threads) fail(str_cat("barrier of ", threads, " threads"), loc);
  Barrier& barrier = e.barriers[id];
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
  barrier.any |= predicate;
  e.current->barrier = id;
  if (wait) barrier.waiting.add(e.current->warp(), e.current->bit());
  if (++barrier.arrived == (threads ? threads : e.threads - e.returned)) e.release_barrier(&barrier);
  if (!wait) return false;
  e.wait(State::barrier, loc);
  acquire(order);
  return barrier.result;
}

void collective(unsigned num_warps, uint32_t mask, const char* name, void* record, const Collective& run, Loc loc) {
  Engine& e = engine();
  Fiber& self = *e.current;
  Warp& own = e.warps[self.warp()];
  const unsigned first_warp = self.warp() / num_warps * num_warps;
  if (!(mask & self.bit())) fail(str_cat(name, ": lane ", self.lane(), " is not in its own mask"), loc);
  for (unsigned warp = first_warp; warp < first_warp + num_warps; warp++) {
    if (const uint32_t missing = mask & ~e.warps[warp].alive) {
      fail(str_cat(name, " names lane ", std::countr_zero(missing), " of warp ", warp,
                   ", which has returned or never was"),
           loc);
    }
  }
  char* const order = run ? nullptr : &own.order[mask == ~0u ? own.generation & 1 : 2];
  if (order) release(order);
  self.mask = mask;
  self.name = name;
  self.record = record;
  self.loc = loc;
  own.pending |= self.bit();
  e.complete(first_warp, num_warps, run);
  e.wait(State::collective, loc);
  if (order) acquire(order);
}

void wait_for(const void* key, const char* name, Loc loc) {
  Engine& e = engine();
  e.current->key = key;
  e.current->name = name;
  e.wait(State::key, loc);
}

void wake(const void* key) {
  Engine& e = engine();
  for (unsigned i = 0; i < e.threads; i++) {
    Fiber& fiber = *e.fibers[i];
    if (fiber.state != State::key || fiber.key != key) continue;
    fiber.state = State::ready;
    e.ready.add(fiber.warp(), fiber.bit());
  }
}

void defer(std::function<void()> work) {
  const Quiet quiet;
  engine().deferred.push_back(std::move(work));
}

void LateWork::wait(int newer_groups) {
  const auto is_newer = [&](const Piece& piece) { return piece.group >= committed_ - newer_groups; };
  const auto end = std::find_if(pieces_.begin(), pieces_.end(), is_newer);
  std::for_each(pieces_.begin(), end, [](const Piece& piece) { piece.work(); });
  pieces_.erase(pieces_.begin(), end);
}

LateWork& late_copies() { return engine().current->copies; }
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
