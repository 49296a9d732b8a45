#include "bindings/bindings.h"

namespace dlf {

void bind_engine(pybind11::module_&) {}

}  // namespace dlf
