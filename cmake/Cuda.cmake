# Decides whether the CUDA backend is built: then DLF_CUDA_VERSION is torch's version of CUDA, otherwise it is empty.
# nvcc compiles the kernels, which use the libraries of torch, so running needs no toolkit.
# `find_package(CUDAToolkit)` would need more of a toolkit than nvcc and its headers.
set(DLF_CUDA AUTO CACHE STRING "Build the CUDA backend: ON, OFF, or AUTO: if torch has CUDA and nvcc is found")
set_property(CACHE DLF_CUDA PROPERTY STRINGS AUTO ON OFF)

cmake_path(GET DLF_TORCH_ROOT PARENT_PATH DLF_SITE_PACKAGES)
string(REGEX MATCH "^[0-9]+" DLF_CUDA_MAJOR "${DLF_TORCH_CUDA}")

# Sets DLF_NVCC to an nvcc of torch's major version of CUDA, or DLF_CUDA_MISSING to the reason why there is none.
function(dlf_find_nvcc)
  set(nvcc "${CMAKE_CUDA_COMPILER}")
  if(NOT nvcc)
    set(nvcc "$ENV{CUDACXX}")
  endif()
  if(NOT nvcc)
    find_program(DLF_NVCC_FOUND nvcc PATHS /usr/local/cuda/bin "${DLF_SITE_PACKAGES}/nvidia/cu${DLF_CUDA_MAJOR}/bin"
                 "${DLF_SITE_PACKAGES}/nvidia/cuda_nvcc/bin")
    mark_as_advanced(DLF_NVCC_FOUND)
    set(nvcc "${DLF_NVCC_FOUND}")
  endif()
  if(NOT nvcc)
    set(DLF_CUDA_MISSING "nvcc is neither on PATH nor in /usr/local/cuda; set CUDACXX to its path" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND "${nvcc}" --version OUTPUT_VARIABLE version ERROR_VARIABLE version)
  if(NOT version MATCHES "release ${DLF_CUDA_MAJOR}\\.")
    set(DLF_CUDA_MISSING "torch ${DLF_TORCH_VERSION} needs an nvcc of CUDA ${DLF_CUDA_MAJOR}, and ${nvcc} has another version; set CUDACXX" PARENT_SCOPE)
    return()
  endif()
  set(DLF_NVCC "${nvcc}" PARENT_SCOPE)
endfunction()

set(DLF_CUDA_VERSION "")
set(DLF_CUDA_MISSING "")
if(DLF_CUDA STREQUAL "OFF")
  set(DLF_CUDA_MISSING "DLF_CUDA is OFF")
elseif(NOT DLF_TORCH_CUDA)
  set(DLF_CUDA_MISSING "torch ${DLF_TORCH_VERSION} was built without CUDA")
else()
  dlf_find_nvcc()
endif()
if(DLF_CUDA_MISSING)
  if(DLF_CUDA STREQUAL "ON")
    message(FATAL_ERROR "DLF_CUDA is ON, but ${DLF_CUDA_MISSING}")
  endif()
  message(STATUS "CUDA: not built, ${DLF_CUDA_MISSING}")
  return()
endif()

set(DLF_CUDA_VERSION "${DLF_TORCH_CUDA}")
set(CMAKE_CUDA_COMPILER "${DLF_NVCC}" CACHE FILEPATH "nvcc")
set(CMAKE_CUDA_HOST_COMPILER "${CMAKE_CXX_COMPILER}" CACHE FILEPATH "Host compiler of nvcc")
set(CMAKE_CUDA_ARCHITECTURES "80-real;90-real;90-virtual" CACHE STRING "A100, H100, and newer ones")
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY None) # torch's is linked, below
enable_language(CUDA)

file(GLOB DLF_CUDART "${DLF_SITE_PACKAGES}/nvidia/*/lib/libcudart.so.${DLF_CUDA_MAJOR}")
if(DLF_CUDART)
  list(GET DLF_CUDART 0 DLF_CUDART)
else() # a torch that is not from a wheel uses the system's
  find_library(DLF_CUDART cudart HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} REQUIRED)
endif()
message(STATUS "CUDA: ${DLF_CUDA_VERSION}, ${CMAKE_CUDA_COMPILER}, ${DLF_CUDART}")

# nvcc comes with the headers of the runtime. torch's headers also include those of cuBLAS and other libraries, which
# only torch's wheels may have.
file(GLOB DLF_CUDA_WHEEL_INCLUDES "${DLF_SITE_PACKAGES}/nvidia/*/include")
add_library(dlf::torch_cuda INTERFACE IMPORTED)
target_include_directories(dlf::torch_cuda SYSTEM INTERFACE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES}
                           ${DLF_CUDA_WHEEL_INCLUDES})
target_link_libraries(dlf::torch_cuda INTERFACE dlf::torch torch_cuda c10_cuda "${DLF_CUDART}")

# dlf_add_cuda(target sources...): adds a library of kernels (*.cu), which include no torch header, and of their callers (*.cc).
function(dlf_add_cuda target)
  set(kernels ${ARGN})
  list(FILTER kernels INCLUDE REGEX "\\.cu$")
  set(sources ${ARGN})
  list(FILTER sources EXCLUDE REGEX "\\.cu$")
  add_library(${target} STATIC ${sources})
  target_link_libraries(${target} PUBLIC dlf_core PRIVATE dlf::torch_cuda)
  if(kernels)
    add_library(${target}_kernels OBJECT ${kernels})
    target_include_directories(${target}_kernels PRIVATE cpp)
    # -lineinfo lets profilers and compute-sanitizer name lines, and more than doubles the size of the library.
    target_compile_options(${target}_kernels PRIVATE -Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Werror,-fvisibility=hidden
                           $<$<CONFIG:RelWithDebInfo>:-lineinfo>)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_kernels>)
  endif()
endfunction()
