# The kernels of kernels/cuda, compiled twice from one list of sources: kernels/cuda/<family>/*.cu and the
# table of all families.
#
# quire_simt          by g++ against the emulation of kernels/cuda/simt; needs no CUDA. Built with the tests.
# quire_cuda_kernels  by nvcc for sm_80 and sm_90a, with the CUDA runtime linked statically; QUIRE_CUDA=ON.
#                     Files *_sm90*.cu use instructions that only sm_90a has.
set(CMAKE_CUDA_ARCHITECTURES "80-real;90a-real")  # before the language is enabled, which would set a default
file(GLOB cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/cuda/*.cu
     ${PROJECT_SOURCE_DIR}/kernels/cuda/*/*.cu)
# Host code that asks the CUDA runtime, compiled against NVIDIA's headers or the emulation's; the entry of a plugin apart.
file(GLOB cuda_device_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cpp/device/cuda/*.cpp)
set(cuda_plugin_source ${PROJECT_SOURCE_DIR}/cpp/device/cuda/plugin_entry.cpp)
list(REMOVE_ITEM cuda_device_sources ${cuda_plugin_source})

if(QUIRE_BUILD_TESTS)
  add_subdirectory(kernels/cuda/simt)
endif()

if(QUIRE_CUDA STREQUAL "ON" AND cuda_sources)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
  set(sm90_sources ${cuda_sources})
  list(FILTER sm90_sources INCLUDE REGEX "_sm90[^/]*\\.cu$")
  list(FILTER cuda_sources EXCLUDE REGEX "_sm90[^/]*\\.cu$")
  add_library(quire_cuda_kernels OBJECT ${cuda_sources})
  set(cuda_targets quire_cuda_kernels)
  if(sm90_sources)
    add_library(quire_cuda_kernels_sm90 OBJECT ${sm90_sources})
    set_target_properties(quire_cuda_kernels_sm90 PROPERTIES CUDA_ARCHITECTURES 90a-real)
    list(APPEND cuda_targets quire_cuda_kernels_sm90)
  endif()
  foreach(target IN LISTS cuda_targets)
    target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR}/cpp ${PROJECT_SOURCE_DIR}/kernels)
    # Host code: the same rules of arithmetic as everywhere; -Xptxas -v writes registers and spills into the log.
    target_compile_options(${target} PRIVATE --expt-relaxed-constexpr -Xcompiler=-Wall,-ffp-contract=off -Xptxas=-v)
  endforeach()

  # quire_link_cuda(<target>): links the kernels that nvcc compiled, and the CUDA runtime statically.
  find_package(CUDAToolkit REQUIRED)
  set(quire_cuda_targets ${cuda_targets})
  function(quire_link_cuda target)
    target_link_libraries(${target} PRIVATE ${quire_cuda_targets} CUDA::cudart_static)
    set_target_properties(${target} PROPERTIES LINKER_LANGUAGE CXX)
  endfunction()
endif()
