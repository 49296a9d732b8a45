#pragma once

#include <string>

namespace dlf::emulation {

// Returns the name of a function of this program, for messages.
std::string kernel_name(const void* function);

}  // namespace dlf::emulation
