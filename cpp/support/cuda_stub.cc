#include "support/cuda/runtime.h"

// What a build without CUDA has in place of dlf_cuda: all that the rest calls of it.
namespace dlf::cuda {

std::vector<DeviceInfo> devices() { return {}; }

}  // namespace dlf::cuda
