#pragma once

#include <cstddef>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace dlf::emulation {

// A function with a stack of its own that can stop in the middle and go on later: one thread of a kernel. A switch
// costs a few nanoseconds. The stack is taken once and used for one function after the other.
class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void start(void (*function)());  // the next resume() enters function, whatever the fiber did before
  void resume();                   // runs the fiber until it suspends
  void suspend();                  // from inside: back to whoever resumed it
  void finish();                   // from inside, for the last time: function must never return
  bool overflowed() const;         // it used more stack than there is

 private:
  unsigned char* stack_;
  unsigned char* top_;  // the first frame's end
  void (*function_)() = nullptr;
#if defined(__x86_64__)
  void* inside_ = nullptr;  // stack pointers of where the fiber stopped and of who resumed it
  void* outside_ = nullptr;
#else
  ucontext_t inside_;
  ucontext_t outside_;
#endif
  // What AddressSanitizer has to know of the stack that resumed it.
  const void* outside_stack_ = nullptr;
  size_t outside_bytes_ = 0;
  void* fake_stack_ = nullptr;

  void enter_outside(void** fake_stack);
  static void first();
};

}  // namespace dlf::emulation
