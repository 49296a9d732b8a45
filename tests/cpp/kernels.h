#pragma once

#include "support/cpu_capability.h"

// A kernel's versions, one for each instruction set.
#ifdef DLF_X86_64
#define KERNELS(name) &portable::name, &avx2::name, &avx512::name, &avx512::name
#define KERNELS_BF16(name) &portable::name, &avx2::name, &avx512::name, &avx512_bf16::name
#else
#define KERNELS(name) &portable::name, &portable::name, &portable::name, &portable::name
#define KERNELS_BF16(name) KERNELS(name)
#endif

namespace dlf::testing {

// Calls body with the portable kernel and with each vectorised one that this processor can run.
template <typename Kernel, typename Body>
void for_each_kernel(Kernel* portable, [[maybe_unused]] Kernel* avx2, [[maybe_unused]] Kernel* avx512,
                     [[maybe_unused]] Kernel* avx512_bf16, Body&& body) {
  body(portable);
#ifdef DLF_X86_64
  if (cpu_capability() >= CpuCapability::avx2) {
    body(avx2);
  }
  if (cpu_capability() >= CpuCapability::avx512) {
    body(avx512);
  }
  if (cpu_capability() >= CpuCapability::avx512_bf16 && avx512_bf16 != avx512) {
    body(avx512_bf16);
  }
#endif
}

}  // namespace dlf::testing
