#include "bindings/gil.h"

#include <cxxabi.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <thread>

namespace dlf {
namespace {

std::atomic<int> at_work{0};  // threads that have released the GIL

[[noreturn]] void stop() {
  while (true) {
    ::pause();
  }
}

// Stops the thread before its stack is unwound further: that is how Python ends a thread that comes back too late.
template <typename Body>
auto or_stop(Body&& body) {
  try {
    return body();
  } catch (const abi::__forced_unwind&) {
    stop();
  }
}

bool interpreter_ends() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

std::terminate_handler before = nullptr;

// torch's bindings, through which dlf.fusion takes tensors, have no such guard: there the unwinding ends at the first
// destructor, without an exception.
void stop_or_terminate() {
  if (interpreter_ends() && !std::current_exception()) {
    stop();
  }
  before();
}

// Runs after the last Python code: a thread that finishes its work from now on stops before it does anything else.
void wait_for_work() {
  while (at_work.load() > 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace

GilRelease::GilRelease() { release(); }

GilRelease::~GilRelease() { acquire(); }

void GilRelease::release() {
  ++at_work;
  state_ = PyEval_SaveThread();
}

void GilRelease::acquire() {
  --at_work;
  or_stop([&] { PyEval_RestoreThread(state_); });
}

bool GilRelease::ask(const std::function<PyObject*()>& make_call) {
  acquire();
  const int answer = or_stop([&] {
    PyObject* result = make_call();
    const int is_true = result == nullptr ? -1 : PyObject_IsTrue(result);
    Py_XDECREF(result);
    return is_true;
  });
  if (answer < 0) {
    pybind11::error_already_set error;
    release();
    throw error;
  }
  release();
  return answer > 0;
}

void bind_gil() {
  before = std::set_terminate(&stop_or_terminate);
  Py_AtExit(&wait_for_work);
  pthread_atfork(nullptr, nullptr, [] { at_work.store(0); });  // the other threads are not in the child
}

}  // namespace dlf
