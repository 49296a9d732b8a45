# dlf_add_cpu_kernels(target sources...): compiles every *_cpu.cc once per instruction set, each time into a namespace of its
# own (DLF_CPU); cpp/support/cpu_capability.h chooses among them at run time.
function(dlf_add_cpu_kernel_variant target namespace aten)
  set(library ${target}_${namespace})
  add_library(${library} OBJECT ${DLF_KERNEL_SOURCES})
  # CPU_CAPABILITY is how at::vec names its instruction sets.
  target_compile_definitions(${library} PRIVATE DLF_CPU=${namespace} CPU_CAPABILITY=${aten} CPU_CAPABILITY_${aten})
  # Floating-point exceptions are never read; minding them would keep GCC from vectorising comparisons.
  # GCC 12 takes the undefined operands of its own AVX-512 intrinsics for uninitialised variables.
  target_compile_options(${library} PRIVATE -O3 -ffp-contract=fast -fno-trapping-math -Wno-uninitialized -Wno-maybe-uninitialized ${ARGN})
  target_link_libraries(${library} PRIVATE dlf_options)
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${library}>)
endfunction()

function(dlf_add_cpu_kernels target)
  set(DLF_KERNEL_SOURCES ${ARGN})
  dlf_add_cpu_kernel_variant(${target} portable DEFAULT)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    target_compile_definitions(dlf_options INTERFACE DLF_X86_64)
    dlf_add_cpu_kernel_variant(${target} avx2 AVX2 -mavx2 -mfma -mf16c)
    dlf_add_cpu_kernel_variant(${target} avx512 AVX512 -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq)
  endif()
endfunction()
