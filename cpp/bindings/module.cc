#include <torch/csrc/Exceptions.h>

#include <algorithm>
#include <array>
#include <new>
#include <string>
#include <string_view>

#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "support/cpu_capability.h"
#include "support/cuda/runtime.h"
#include "support/option_error.h"

namespace {

// Returns whether a message says that memory ran out: torch's allocators and its matrix library say so in words alone.
bool is_out_of_memory(std::string_view what) {
  return std::ranges::any_of(std::array{"can't allocate memory", "not enough memory", "out of memory", "out_of_memory",
                                        "bad_alloc", "could not create a primitive"},
                             [&](const char* words) { return what.find(words) != std::string_view::npos; });
}

void raise_memory_error(const std::string& what) {
  const std::string message = "memory ran out (" + what.substr(0, what.find('\n')) +
                              "); lower max_batch, max_context or prefix_cache_bytes, load smaller weights "
                              "(weights=\"int8\" or \"int4\"), or give shorter prompts";
  PyErr_SetString(PyExc_MemoryError, message.c_str());
}

// Raises an option's error as dlf's own, torch's exceptions (TORCH_CHECK_VALUE and its siblings) as the Python
// exceptions that they name, and out-of-memory errors of any device as a MemoryError.
// NOLINTNEXTLINE(performance-unnecessary-value-param): pybind11 asks for this signature.
void translate_exception(std::exception_ptr exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const pybind11::builtin_exception&) {
    throw;  // pybind11 translates its own
  } catch (const pybind11::error_already_set&) {
    throw;
  } catch (const dlf::OptionError& error) {
    const pybind11::object kind = pybind11::module_::import("dlf.errors").attr("OptionError");
    PyErr_SetObject(kind.ptr(), kind(error.what_without_backtrace(), error.field()).ptr());
  } catch (const c10::OutOfMemoryError& error) {
    raise_memory_error(error.what_without_backtrace());
  } catch (const std::bad_alloc& error) {
    raise_memory_error(error.what());
  } catch (const std::exception& error) {
    const auto* of_torch = dynamic_cast<const c10::Error*>(&error);
    const std::string what = of_torch == nullptr ? error.what() : of_torch->what_without_backtrace();
    if (is_out_of_memory(what)) {
      return raise_memory_error(what);
    }
    torch::translate_exception_to_python(exception);
  }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The C++ engine of dlf.";
  pybind11::register_local_exception_translator(&translate_exception);
  m.attr("__version__") = DLF_VERSION;
  m.attr("torch_minor") = DLF_TORCH_MINOR;
  m.attr("cuda_version") = dlf::cuda::version();
  m.def(
      "cpu_capability", [] { return std::string(dlf::name(dlf::cpu_capability())); },
      "Instruction set that the CPU kernels use: portable, avx2, avx512 or avx512_bf16.");
  dlf::bind_gil();
  dlf::bind_fusion(m);
  dlf::bind_sampling(m);
  dlf::bind_model(m);
  dlf::bind_engine(m);
  dlf::bind_devices(m);
}
