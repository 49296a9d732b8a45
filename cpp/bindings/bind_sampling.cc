#include "bindings/bindings.h"

namespace dlf {

void bind_sampling(pybind11::module_&) {}

}  // namespace dlf
