#pragma once

#include <string_view>

// Kernels in *_kernel.cc are compiled once per instruction set, into the namespaces below. DLF_CPU_KERNEL declares one
// in all of them; DLF_CPU_DISPATCH points to the best that this processor runs. Only linear*_kernel.cc and
// attention_prefill_kernel.cc gain from avx512_bf16: they are compiled for it too, and DLF_CPU_DISPATCH_BF16 chooses
// among all.
#ifdef DLF_X86_64
#define DLF_CPU_KERNEL(name, ...) \
  namespace portable {            \
  void name(__VA_ARGS__);         \
  }                               \
  namespace avx2 {                \
  void name(__VA_ARGS__);         \
  }                               \
  namespace avx512 {              \
  void name(__VA_ARGS__);         \
  }                               \
  namespace avx512_bf16 {         \
  void name(__VA_ARGS__);         \
  }                               \
  static_assert(true, "ends with a semicolon")
#define DLF_CPU_DISPATCH(name) ::dlf::choose_kernel(&portable::name, &avx2::name, &avx512::name, &avx512::name)
#define DLF_CPU_DISPATCH_BF16(name) \
  ::dlf::choose_kernel(&portable::name, &avx2::name, &avx512::name, &avx512_bf16::name)
#else
#define DLF_CPU_KERNEL(name, ...) \
  namespace portable {            \
  void name(__VA_ARGS__);         \
  }                               \
  static_assert(true, "ends with a semicolon")
#define DLF_CPU_DISPATCH(name) (&portable::name)
#define DLF_CPU_DISPATCH_BF16(name) (&portable::name)
#endif

namespace dlf {

// avx512_bf16: with the dot products of BF16 and VNNI.
enum class CpuCapability { portable, avx2, avx512, avx512_bf16 };

// The best instruction set of this processor, or a lesser one that the environment variable DLF_CPU_CAPABILITY
// (portable, avx2, avx512, avx512_bf16) asks for. Read once.
CpuCapability cpu_capability();
std::string_view name(CpuCapability capability);

template <typename Kernel>
Kernel* choose_kernel(Kernel* portable, Kernel* avx2, Kernel* avx512, Kernel* avx512_bf16) {
  switch (cpu_capability()) {
    case CpuCapability::avx512_bf16:
      return avx512_bf16;
    case CpuCapability::avx512:
      return avx512;
    case CpuCapability::avx2:
      return avx2;
    default:
      return portable;
  }
}

}  // namespace dlf
