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
  void suspend(Fiber& next);       // from inside: runs next, which returns to the caller of resume() in its turn
  void finish();                   // from inside, for the last time: function must never return
  bool overflowed() const;         // whether it used more than its stack

 private:
  // Where something stopped, with what AddressSanitizer must know of its stack.
  struct Context {
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t registers = {};
#endif
    const void* stack = nullptr;
    size_t bytes = 0;
    void* fake_stack = nullptr;
  };

  unsigned char* stack_;
  unsigned char* top_;  // end of the first frame
  void (*function_)() = nullptr;
  Context inside_;

  static Context caller_;  // of resume(); only one thread at a time calls it
  static Context* left_;   // by the last switch
  static Fiber* entered_;  // by the last switch into a fiber
  static void enter(Context& to, Context& from, bool for_good = false);
  static void arrive(Context& context);
  static void first();
};

}  // namespace dlf::emulation
