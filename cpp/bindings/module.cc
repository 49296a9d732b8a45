#include <torch/csrc/Exceptions.h>

#include "bindings/bindings.h"
#include "support/cpu_capability.h"
#include "support/cuda/runtime.h"

namespace {

// torch's exceptions (TORCH_CHECK_VALUE and its siblings) as the Python exceptions that they name.
// NOLINTNEXTLINE(performance-unnecessary-value-param): pybind11 asks for this signature.
void translate_exception(std::exception_ptr exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const pybind11::builtin_exception&) {
    throw;  // pybind11 knows its own
  } catch (...) {
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
  dlf::bind_devices(m);
  dlf::bind_fusion(m);
  dlf::bind_sampling(m);
  dlf::bind_model(m);
  dlf::bind_engine(m);
}
