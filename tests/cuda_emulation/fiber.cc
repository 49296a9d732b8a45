#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace dlf::emulation {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif
constexpr uint64_t kCanary = 0x5afe57acb077031eULL;

// Returns a new stack's offset: stacks with equal offsets within a page would compete for the same L1 cache lines.
size_t stagger() {
  static size_t stacks = 0;
  return (stacks++ % 16) * 256;
}

}  // namespace

Fiber::Context Fiber::caller_;
Fiber::Context* Fiber::left_ = nullptr;
Fiber* Fiber::entered_ = nullptr;

#if defined(__x86_64__)
// Saves the callee-saved registers on this stack and switches to another: dlf_emulation_switch(&saved, other).
asm(R"(
.pushsection .text
.hidden dlf_emulation_switch
.globl dlf_emulation_switch
.type dlf_emulation_switch, @function
dlf_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size dlf_emulation_switch, .-dlf_emulation_switch
.popsection
)");
extern "C" void dlf_emulation_switch(void** saved, void* other);
#endif

Fiber::Fiber() {
  void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    throw std::bad_alloc();
  }
  stack_ = static_cast<unsigned char*>(memory);
  top_ = stack_ + kStackBytes - stagger();
  std::memcpy(stack_, &kCanary, sizeof(kCanary));
}

Fiber::~Fiber() { munmap(stack_, kStackBytes); }

bool Fiber::overflowed() const { return std::memcmp(stack_, &kCanary, sizeof(kCanary)) != 0; }

// Runs first on the stack.
void Fiber::first() {
  Fiber* const fiber = entered_;
  arrive(fiber->inside_);
  fiber->function_();
  __builtin_trap();
}

void Fiber::start(void (*function)()) {
  function_ = function;
  inside_ = Context();
  inside_.stack = stack_;
  inside_.bytes = kStackBytes;
#if defined(__SANITIZE_ADDRESS__)
  // Frames that never returned are still poisoned.
  ASAN_UNPOISON_MEMORY_REGION(stack_, kStackBytes);
#endif
#if defined(__x86_64__)
  auto** stack = reinterpret_cast<void**>(top_);
  *--stack = nullptr;  // where first() would return to; it keeps the stack aligned as a call would
  *--stack = reinterpret_cast<void*>(&Fiber::first);
  for (int i = 0; i < 6; ++i) {
    *--stack = nullptr;
  }
  inside_.stack_pointer = stack;
#else
  getcontext(&inside_.registers);
  inside_.registers.uc_stack.ss_sp = stack_;
  inside_.registers.uc_stack.ss_size = top_ - stack_;
  inside_.registers.uc_link = nullptr;
  makecontext(&inside_.registers, &Fiber::first, 0);
#endif
}

void Fiber::arrive(Context& context) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(context.fake_stack, &left_->stack, &left_->bytes);
#else
  static_cast<void>(context);
#endif
}

// Always inline: two suspended lanes then return to the same address, which the processor predicts.
[[gnu::always_inline]] inline void Fiber::enter(Context& to, Context& from, bool for_good) {
  left_ = &from;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.stack, to.bytes);
#else
  static_cast<void>(for_good);
#endif
#if defined(__x86_64__)
  dlf_emulation_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.registers, &to.registers);
#endif
  arrive(from);
}

void Fiber::resume() {
  entered_ = this;
  enter(inside_, caller_);
}

void Fiber::suspend() { enter(caller_, inside_); }

void Fiber::suspend(Fiber& next) {
  entered_ = &next;
  enter(next.inside_, inside_);
}

void Fiber::finish() {
  enter(caller_, inside_, true);
  __builtin_trap();
}

}  // namespace dlf::emulation
