#include "bindings/bindings.h"

namespace dlf {

void bind_model(pybind11::module_&) {}

}  // namespace dlf
