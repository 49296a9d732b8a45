#pragma once

// Marks a function that kernels call, too.
#ifdef __CUDACC__
#define DLF_HOST_DEVICE __host__ __device__
#else
#define DLF_HOST_DEVICE
#endif
