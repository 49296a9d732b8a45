# The oldest and the newest minor that dlf is tested with (`make torch-check`). The sources are the same for all minors.
set(DLF_TORCH_OLDEST 2.11)
set(DLF_TORCH_NEWEST 2.15)

# Asks the building Python for its libtorch. For a CUDA build of torch, `find_package(Torch)` would need the whole CUDA
# toolkit; the include and library folders are enough.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c "import os, torch; print(os.path.dirname(torch.__file__), torch.__version__, int(torch.compiled_with_cxx11_abi()), torch.version.cuda or 'OFF', sep=';')"
  OUTPUT_VARIABLE DLF_TORCH OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE DLF_TORCH_RESULT)
if(NOT DLF_TORCH_RESULT EQUAL 0)
  message(FATAL_ERROR "No torch in ${Python_EXECUTABLE}: install torch ${DLF_TORCH_OLDEST} or newer there, or build with 'pip install .'")
endif()
list(GET DLF_TORCH 0 DLF_TORCH_ROOT)
list(GET DLF_TORCH 1 DLF_TORCH_VERSION)
list(GET DLF_TORCH 2 DLF_TORCH_CXX11_ABI)
list(GET DLF_TORCH 3 DLF_TORCH_CUDA) # its version, or OFF
string(REGEX MATCH "^[0-9]+\\.[0-9]+" DLF_TORCH_MINOR "${DLF_TORCH_VERSION}")
if(DLF_TORCH_MINOR VERSION_LESS DLF_TORCH_OLDEST)
  message(FATAL_ERROR "torch ${DLF_TORCH_VERSION} found; dlf builds against ${DLF_TORCH_OLDEST} or newer")
elseif(DLF_TORCH_MINOR VERSION_GREATER DLF_TORCH_NEWEST)
  message(WARNING "torch ${DLF_TORCH_VERSION} is newer than ${DLF_TORCH_NEWEST}, the newest that dlf is tested with")
endif()
message(STATUS "torch ${DLF_TORCH_VERSION} in ${DLF_TORCH_ROOT}")

add_library(dlf::torch INTERFACE IMPORTED)
# SYSTEM silences warnings of torch's headers. These bundle the pybind11 of torch's own bindings.
target_include_directories(dlf::torch SYSTEM INTERFACE "${DLF_TORCH_ROOT}/include"
                           "${DLF_TORCH_ROOT}/include/torch/csrc/api/include")
target_compile_definitions(dlf::torch INTERFACE _GLIBCXX_USE_CXX11_ABI=${DLF_TORCH_CXX11_ABI})
target_link_directories(dlf::torch INTERFACE "${DLF_TORCH_ROOT}/lib")
target_link_libraries(dlf::torch INTERFACE torch torch_cpu c10)

add_library(dlf::torch_python INTERFACE IMPORTED)
target_link_libraries(dlf::torch_python INTERFACE dlf::torch torch_python Python::Module)
