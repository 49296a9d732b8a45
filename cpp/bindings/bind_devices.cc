#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "engine/step_loop_cuda.h"
#include "support/cuda/runtime.h"

namespace dlf {

namespace py = pybind11;

void bind_devices(py::module_& m) {
  py::class_<cuda::DeviceInfo>(m, "DeviceInfo", "A CUDA device that this process sees.")
      .def_readonly("index", &cuda::DeviceInfo::index)
      .def_readonly("name", &cuda::DeviceInfo::name)
      .def_readonly("total_bytes", &cuda::DeviceInfo::total_bytes)
      .def_readonly("free_bytes", &cuda::DeviceInfo::free_bytes)
      .def_readonly("compute_capability", &cuda::DeviceInfo::compute_capability)
      .def_readonly("multiprocessors", &cuda::DeviceInfo::multiprocessors);

  m.attr("MAX_CUDA_BATCH") = kMaxCudaBatch;
  m.def("cuda_devices", &cuda::devices, py::call_guard<GilRelease>(),
        "The devices that this process sees: none where dlf was built without CUDA, or where there is no driver.");
}

}  // namespace dlf
