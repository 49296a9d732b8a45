#pragma once

struct CUstream_st;

namespace dlf::cuda {

// cudaStream_t, for headers that a build without CUDA reads too.
using Stream = CUstream_st*;

}  // namespace dlf::cuda
