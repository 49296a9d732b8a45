#pragma once

#include <torch/csrc/utils/pybind.h>

namespace dlf {

void bind_devices(pybind11::module_& m);
void bind_fusion(pybind11::module_& m);
void bind_sampling(pybind11::module_& m);
void bind_model(pybind11::module_& m);
void bind_engine(pybind11::module_& m);

}  // namespace dlf
