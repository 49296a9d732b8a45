#include "bindings/bindings.h"

namespace dlf {

void bind_fusion(pybind11::module_&) {}

}  // namespace dlf
