// What the engine is made of below its rules: stacks and the switch between them, sets of threads, and the hooks of
// the sanitizers, which are weak symbols, so that the same object serves builds with and without them.
//
// Knows nothing of barriers or kernels. Included by engine.cpp alone.
#pragma once

#include <sys/mman.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <new>
#if !defined(__x86_64__) || defined(QUIRE_SIMT_UCONTEXT)
#include <ucontext.h>
#endif

extern "C" {
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* bytes);
[[gnu::weak]] void __asan_unpoison_memory_region(const volatile void* address, size_t bytes);
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_destroy_fiber(void* fiber);
[[gnu::weak]] void __tsan_switch_to_fiber(void* fiber, unsigned flags);
[[gnu::weak]] void __tsan_acquire(void* address);
[[gnu::weak]] void __tsan_release(void* address);
[[gnu::weak]] void AnnotateIgnoreReadsBegin(const char* file, int line);
[[gnu::weak]] void AnnotateIgnoreReadsEnd(const char* file, int line);
[[gnu::weak]] void AnnotateIgnoreWritesBegin(const char* file, int line);
[[gnu::weak]] void AnnotateIgnoreWritesEnd(const char* file, int line);
}

namespace quire::simt {

constexpr unsigned kMaxThreads = 1024, kMaxWarps = kMaxThreads / 32;
constexpr unsigned kSwitchWithoutOrder = 1;  // __tsan_switch_to_fiber_no_sync

#if defined(__x86_64__) && !defined(QUIRE_SIMT_UCONTEXT)
using Context = void*;  // the stack pointer; everything else lies on the stack

// Saves the registers a callee must keep on this stack and goes on with the other. About 10 ns; swapcontext makes a
// system call and takes 180.
[[gnu::naked, gnu::noipa]] inline void swap_context(Context* /*from*/, Context* /*to*/) {
  asm volatile(
      "pushq %%rbp\n pushq %%rbx\n pushq %%r12\n pushq %%r13\n pushq %%r14\n pushq %%r15\n"
      "movq %%rsp,(%%rdi)\n movq (%%rsi),%%rsp\n"
      "popq %%r15\n popq %%r14\n popq %%r13\n popq %%r12\n popq %%rbx\n popq %%rbp\n ret\n" ::
          : "memory");
}

inline void seed_context(Context* context, char* stack, size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + bytes);
  *--top = nullptr;  // entry starts as if called: the stack pointer is 16n + 8
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  *context = top;
}
#else
using Context = ucontext_t;

inline void swap_context(Context* from, Context* to) { swapcontext(from, to); }

inline void seed_context(Context* context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = bytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
}
#endif

// What runs on a stack. create() gives it one of its own, below which an overflow faults; without, it stands for the
// launching code and the stack that this came with.
class Stack {
 public:
  Stack() : tsan_(__tsan_get_current_fiber ? __tsan_get_current_fiber() : nullptr) {}
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  ~Stack() {
    if (!map_) return;
    if (__tsan_destroy_fiber) __tsan_destroy_fiber(tsan_);
    unpoison();  // AddressSanitizer does not see munmap, and would blame whoever gets these pages next
    munmap(map_, kGuard + bytes_);
  }

  void create(void (*entry)()) {
    bytes_ = __sanitizer_start_switch_fiber ? 256 << 10 : 64 << 10;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* const map = mmap(nullptr, kGuard + bytes_, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    mprotect(map, kGuard, PROT_NONE);
    map_ = map;
    bottom_ = static_cast<char*>(map) + kGuard;
    tsan_ = nullptr;
    restart(entry);
  }

  // Forgets all frames and starts again at entry.
  void restart(void (*entry)()) {
    unpoison();
    fake_stack_ = nullptr;
    if (__tsan_create_fiber) {
      if (tsan_) __tsan_destroy_fiber(tsan_);
      tsan_ = __tsan_create_fiber(0);
    }
    seed_context(&context_, bottom_, bytes_, entry);
  }

  void switch_to(Stack* to) {
    if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&fake_stack_, to->bottom_, to->bytes_);
    to->pose();
    swap_context(&context_, &to->context_);
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
  }

  // The first thing that entry does; `launching` is where the very first switch of all came from.
  static void begin(Stack* launching) {
    if (!__sanitizer_finish_switch_fiber) return;
    const void* bottom = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (launching->bytes_) return;
    launching->bottom_ = static_cast<char*>(const_cast<void*>(bottom));
    launching->bytes_ = bytes;
  }

  // For ThreadSanitizer, what follows is done by this one.
  void pose() const {
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(tsan_, kSwitchWithoutOrder);
  }

 private:
  // Takes away what AddressSanitizer noted of the frames.
  void unpoison() const {
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(bottom_, bytes_);
  }

  static constexpr size_t kGuard = 4096;

  Context context_{};
  void* map_ = nullptr;
  char* bottom_ = nullptr;
  size_t bytes_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  void* tsan_;
};

// A set of threads: a word a warp, and a word that says which warps have any.
struct ThreadSet {
  uint32_t lanes[kMaxWarps] = {};
  uint32_t warps = 0;

  void add(unsigned warp, uint32_t bits) {
    lanes[warp] |= bits;
    warps |= 1u << warp;
  }
  void remove(unsigned index) {
    if (!(lanes[index / 32] &= ~(1u << (index % 32)))) warps &= ~(1u << (index / 32));
  }
  void move_to(ThreadSet* other) {
    for (; warps; warps &= warps - 1) {
      const unsigned warp = static_cast<unsigned>(std::countr_zero(warps));
      other->add(warp, lanes[warp]);
      lanes[warp] = 0;
    }
  }
  unsigned highest() const {
    const unsigned warp = 31 - static_cast<unsigned>(std::countl_zero(warps));
    return warp * 32 + 31 - static_cast<unsigned>(std::countl_zero(lanes[warp]));
  }
  // The lowest warp and its lowest lane, counted from a warp and a lane that turn names and going round; 0: the lowest.
  unsigned from(uint32_t turn) const {
    const auto first = [](uint32_t bits, unsigned start) {
      return (static_cast<unsigned>(std::countr_zero(std::rotr(bits, static_cast<int>(start)))) + start) % 32;
    };
    const unsigned warp = first(warps, turn % 32);
    return warp * 32 + first(lanes[warp], turn / 32 % 32);
  }
};

}  // namespace quire::simt
