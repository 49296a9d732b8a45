#include "support/cpu_capability.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>

namespace dlf {
namespace {

CpuCapability detect() {
#ifdef DLF_X86_64
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    const bool dots = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
    return dots ? CpuCapability::avx512_bf16 : CpuCapability::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return CpuCapability::avx2;
  }
#endif
  return CpuCapability::portable;
}

CpuCapability requested(CpuCapability best) {
  const char* variable = std::getenv("DLF_CPU_CAPABILITY");
  if (variable == nullptr || *variable == '\0') {
    return best;
  }
  for (CpuCapability capability :
       {CpuCapability::portable, CpuCapability::avx2, CpuCapability::avx512, CpuCapability::avx512_bf16}) {
    if (name(capability) == variable) {
      return std::min(capability, best);
    }
  }
  TORCH_CHECK_VALUE(false, "DLF_CPU_CAPABILITY is '", variable, "'; it takes portable, avx2, avx512 or avx512_bf16");
}

}  // namespace

CpuCapability cpu_capability() {
  static const CpuCapability capability = requested(detect());
  return capability;
}

std::string_view name(CpuCapability capability) {
  switch (capability) {
    case CpuCapability::avx512_bf16:
      return "avx512_bf16";
    case CpuCapability::avx512:
      return "avx512";
    case CpuCapability::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

}  // namespace dlf
