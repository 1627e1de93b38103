// What the engine is made of below its rules: switching stacks, sets of threads, and the hooks of the sanitizers.
//
// Knows nothing of barriers or kernels. Included by engine.cpp alone.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
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
  unsigned lowest() const {
    const unsigned warp = static_cast<unsigned>(std::countr_zero(warps));
    return warp * 32 + static_cast<unsigned>(std::countr_zero(lanes[warp]));
  }
  unsigned highest() const {
    const unsigned warp = 31 - static_cast<unsigned>(std::countl_zero(warps));
    return warp * 32 + 31 - static_cast<unsigned>(std::countl_zero(lanes[warp]));
  }
  unsigned any(uint32_t random) const {
    const int turn = static_cast<int>(random & 31), lane_turn = static_cast<int>(random >> 5 & 31);
    const unsigned warp = static_cast<unsigned>(std::countr_zero(std::rotr(warps, turn)) + turn) & 31;
    return warp * 32 + (static_cast<unsigned>(std::countr_zero(std::rotr(lanes[warp], lane_turn)) + lane_turn) & 31);
  }
};

}  // namespace quire::simt
