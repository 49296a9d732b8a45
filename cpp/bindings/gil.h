#pragma once

#include <pybind11/pybind11.h>

#include <functional>

namespace dlf {

// Releases the GIL while it lives, as pybind11's gil_scoped_release does, with one difference: if the interpreter ends
// meanwhile, the thread stops for good when it comes back. Python up to 3.13 ends such a thread by unwinding its stack,
// which aborts the process at the first destructor. At its end the interpreter waits for threads at work here, so that
// nothing runs while the libraries are unloaded.
class GilRelease {
 public:
  GilRelease();
  ~GilRelease();
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

  // Calls a Python function with the GIL held; throws what it raises.
  void call(const pybind11::object& function) {
    ask([&] { return PyObject_CallNoArgs(function.ptr()); });
  }
  // Calls a Python function with the object that make() returns, both with the GIL held. Returns whether the result is
  // true; throws what the function raises.
  bool call(const pybind11::object& function, const std::function<pybind11::object()>& make) {
    return ask([&] { return PyObject_CallOneArg(function.ptr(), make().ptr()); });
  }

 private:
  // Returns whether the result of a call, made with the GIL held, is true; null is an exception, which is thrown.
  bool ask(const std::function<PyObject*()>& make_call);
  void release();
  void acquire();

  PyThreadState* state_ = nullptr;
};

// Prepares the process for the interpreter's end.
void bind_gil();

}  // namespace dlf
