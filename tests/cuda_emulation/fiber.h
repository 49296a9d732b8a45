#pragma once

#include <cstddef>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace dlf::emulation {

// A function with its own stack that can suspend and resume: one thread of a kernel. A switch costs a few nanoseconds.
// The stack is allocated once and serves one function after the other.
class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void start(void (*function)());  // the next resume() enters function, whatever the fiber did before
  void resume();                   // runs the fiber until it suspends
  void suspend();                  // from inside: returns to the caller of resume()
  void finish();                   // from inside, for the last time: function must never return
  bool overflowed() const;         // whether it used more than its stack

 private:
  unsigned char* stack_;
  unsigned char* top_;  // end of the first frame
  void (*function_)() = nullptr;
#if defined(__x86_64__)
  void* inside_ = nullptr;  // stack pointers of the suspended fiber and of the caller of resume()
  void* outside_ = nullptr;
#else
  ucontext_t inside_;
  ucontext_t outside_;
#endif
  // The caller's stack, for AddressSanitizer.
  const void* outside_stack_ = nullptr;
  size_t outside_bytes_ = 0;
  void* fake_stack_ = nullptr;

  void enter_outside(void** fake_stack);
  static void first();
};

}  // namespace dlf::emulation
