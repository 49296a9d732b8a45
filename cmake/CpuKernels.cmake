# dlf_add_cpu_kernels(target sources...): compiles every *_kernel.cc once for each instruction set, into a namespace for each
# (DLF_CPU); cpp/support/cpu_capability.h chooses among them at run time. The kernels
# that gain from them are compiled once more, for the dot product instructions.
function(dlf_add_cpu_kernel_variant target namespace aten aten_features)
  set(library ${target}_${namespace})
  add_library(${library} OBJECT ${DLF_KERNEL_SOURCES})
  set_target_properties(${library} PROPERTIES UNITY_BUILD OFF)
  # CPU_CAPABILITY is the namespace of at::vec's functions, which must differ for each set of flags;
  # CPU_CAPABILITY_<set> selects their implementation.
  target_compile_definitions(${library} PRIVATE DLF_CPU=${namespace} CPU_CAPABILITY=${aten} CPU_CAPABILITY_${aten_features})
  # With a sanitizer's checks in unrolled loops, -O3 takes minutes.
  set(level -O3)
  if(DLF_SANITIZE)
    set(level -O1)
  endif()
  # No code reads floating-point exceptions; with -ftrapping-math GCC would not vectorise comparisons.
  # GCC 12 warns about undefined operands in its own AVX-512 intrinsics as uninitialised variables.
  target_compile_options(${library} PRIVATE ${level} -ffp-contract=fast -fno-trapping-math -Wno-uninitialized -Wno-maybe-uninitialized ${ARGN})
  target_link_libraries(${library} PRIVATE dlf_options)
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${library}>)
endfunction()

function(dlf_add_cpu_kernels target)
  set(DLF_KERNEL_SOURCES ${ARGN})
  dlf_add_cpu_kernel_variant(${target} portable DEFAULT DEFAULT)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    target_compile_definitions(dlf_options INTERFACE DLF_X86_64)
    dlf_add_cpu_kernel_variant(${target} avx2 AVX2 AVX2 -mavx2 -mfma -mf16c)
    set(avx512 -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq)
    dlf_add_cpu_kernel_variant(${target} avx512 AVX512 AVX512 ${avx512})
    list(FILTER DLF_KERNEL_SOURCES INCLUDE REGEX "/(attention_prefill|linear|linear_tiles|linear_blocks|linear_units)_kernel\\.cc$")
    dlf_add_cpu_kernel_variant(${target} avx512_bf16 AVX512_BF16 AVX512 ${avx512} -mavx512bf16 -mavx512vnni)
  endif()
endfunction()
