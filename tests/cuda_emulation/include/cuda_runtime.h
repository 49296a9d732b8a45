#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <tuple>
#include <type_traits>

#include "../emulator.h"
#include "emulation/atomics.h"
#include "emulation/intrinsics.h"
#include "emulation/math.h"
#include "emulation/vector_types.h"
#include "emulation/warp.h"

// The part of the CUDA runtime that *.cu files use, on the host: see tests/cuda_emulation/emulator.h. Included in place
// of the toolkit's header of this name.

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __grid_constant__
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx (::dlf::emulation::place->thread)
#define blockIdx (::dlf::emulation::place->block)
#define __CUDA_ARCH_LIST__ 900
constexpr int warpSize = 32;

using cudaStream_t = CUstream_st*;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
  }
  return "unknown error";
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributePreferredSharedMemoryCarveout,
  cudaFuncAttributeNonPortableClusterSizeAllowed,
};

// The emulated device is like an H100.
constexpr int kMaxSharedBytes = 227 * 1024;

inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
  const bool too_much = attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value > kMaxSharedBytes;
  return value < 0 || too_much ? cudaErrorInvalidValue : cudaSuccess;
}

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
};

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 132;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = kMaxSharedBytes;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

enum cudaLaunchAttributeID {
  cudaLaunchAttributeIgnore,
  cudaLaunchAttributeClusterDimension,
  cudaLaunchAttributeProgrammaticStreamSerialization,
};

union cudaLaunchAttributeValue {
  struct {
    unsigned x, y, z;
  } clusterDim;
  int programmaticStreamSerializationAllowed;
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t*) {
  *clusters = 8;
  return cudaSuccess;
}

// Copies the arguments, as a launch does, and puts the kernel on the stream.
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  constexpr size_t kMaxParameterBytes = 4096;
  static_assert((size_t{0} + ... + sizeof(Parameters)) <= kMaxParameterBytes);
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "a kernel's arguments are copied as bytes");
  dlf::emulation::Launch launch = {
      reinterpret_cast<const void*>(kernel), config->gridDim, config->blockDim, config->dynamicSmemBytes, 1, false};
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) {
      const auto& cluster = config->attrs[i].val.clusterDim;
      if (cluster.y != 1 || cluster.z != 1) {
        return cudaErrorInvalidConfiguration;
      }
      launch.cluster = cluster.x;
    }
    if (config->attrs[i].id == cudaLaunchAttributeProgrammaticStreamSerialization) {
      launch.early = config->attrs[i].val.programmaticStreamSerializationAllowed != 0;
    }
  }
  if (!dlf::emulation::valid(launch)) {
    return cudaErrorInvalidConfiguration;
  }
  std::tuple<std::decay_t<Parameters>...> copies(static_cast<Arguments&&>(arguments)...);
  dlf::emulation::submit(config->stream, launch, [kernel, copies] { std::apply(kernel, copies); });
  return cudaSuccess;
}

#if defined(__GNUC__) && !defined(__clang__)
#define __builtin_assume(condition) static_cast<void>(0)
#endif
