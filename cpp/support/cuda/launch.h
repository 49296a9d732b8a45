#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

#include "support/cuda/stream.h"
#include "support/dtype.h"

// What every *.cu file needs, without any torch header: such a file compiles in seconds, and also for the host, where
// tests run the kernels thread by thread.
namespace dlf::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
  }
}

// The block's dynamic shared memory. Kernels use no other, so that blocks of one cluster find theirs at the same
// offset.
template <typename T>
__device__ T* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char dlf_shared_memory[];
  return reinterpret_cast<T*>(dlf_shared_memory);
#else
  return reinterpret_cast<T*>(emulation::shared_memory());
#endif
}

struct Shape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks along x that run together and reach each other's shared memory; needs sm_90 above 1
};

inline int attribute_of_device(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&value, attribute, device), "asking what a device can do");
  return value;
}

inline int multiprocessors() { return attribute_of_device(cudaDevAttrMultiProcessorCount); }

// Whether the current device has the features of sm_90, and the kernels are compiled for it.
inline bool has_sm90() {
  constexpr int kMajor = 9;
  constexpr int kArchitectures[] = {__CUDA_ARCH_LIST__};
  return kArchitectures[std::size(kArchitectures) - 1] >= 100 * kMajor &&
         attribute_of_device(cudaDevAttrComputeCapabilityMajor) >= kMajor;
}

// Whether kernels may start early (launch_early) on this device; DLF_CUDA_EARLY=0 forbids it.
inline bool can_start_early() {
  const char* asked = std::getenv("DLF_CUDA_EARLY");
  return (asked == nullptr || std::string(asked) != "0") && has_sm90();
}

template <typename... Parameters, typename... Arguments>
void launch_kernel(bool early, void (*kernel)(Parameters...), const Shape& shape, Stream stream,
                   Arguments&&... arguments) {
  constexpr size_t kFreeSharedBytes = 48 * 1024;
  constexpr unsigned kPortableCluster = 8;
  const auto* address = reinterpret_cast<const void*>(kernel);
  if (shape.shared_bytes > kFreeSharedBytes) {
    check(cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared_bytes)),
          "asking for shared memory");
  }
  if (shape.cluster > kPortableCluster) {
    check(cudaFuncSetAttribute(address, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "asking for a cluster");
  }
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (shape.cluster > 1) {
    cudaLaunchAttribute& cluster = attributes[count++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = shape.cluster;
    cluster.val.clusterDim.y = 1;
    cluster.val.clusterDim.z = 1;
  }
  if (early) {
    cudaLaunchAttribute& serialization = attributes[count++];
    serialization.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    serialization.val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Arguments&&>(arguments)...), "launching a kernel");
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Shape& shape, Stream stream, Arguments&&... arguments) {
  launch_kernel(false, kernel, shape, stream, static_cast<Arguments&&>(arguments)...);
}

// Launches a kernel that may start as soon as all blocks of the one before it on its stream have called await_inputs()
// (programmatic dependent launch, from sm_90 on). Every thread calls await_inputs() before it reads what an earlier
// kernel writes, and before it writes itself; work before that call, such as reading weights, hides behind the kernels
// before. The launch must follow a kernel on its stream, not a copy or a wait.
template <typename... Parameters, typename... Arguments>
void launch_early(void (*kernel)(Parameters...), const Shape& shape, Stream stream, Arguments&&... arguments) {
  launch_kernel(can_start_early(), kernel, shape, stream, static_cast<Arguments&&>(arguments)...);
}

// Lets the next kernel start, and waits until the kernel before has ended. That one ended after its own wait, so all
// earlier ones have ended too, although several may have run at once.
__device__ inline void await_inputs() {
#ifndef __CUDACC__
  emulation::await_inputs();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
#endif
}

// Converts a type T of device memory to float and back.
__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
template <typename T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16(x);
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half(x);
}

// Calls body.operator()<T>() with the device type of a dtype of 16 bits.
template <typename Body>
void for_half(DType dtype, Body&& body) {
  return dtype == DType::bfloat16 ? body.template operator()<__nv_bfloat16>() : body.template operator()<__half>();
}

// The same for any dtype.
template <typename Body>
void for_dtype(DType dtype, Body&& body) {
  return dtype == DType::float32 ? body.template operator()<float>() : for_half(dtype, body);
}

}  // namespace dlf::cuda
