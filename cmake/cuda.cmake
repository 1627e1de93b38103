# The CUDA backend, compiled twice from one list of sources: the kernels (kernels/cuda/<family>/*.cu and the table of
# all families) and the device (cpp/device/cuda/*.cpp). Each time it ends in a plugin, see cpp/device/plugin.h.
#
# libquire_simt.so  by g++ against the emulation of kernels/cuda/simt; needs no CUDA. Built with the tests, in
#                   <build>/testing, never installed. QUIRE_PLUGIN_PATH=<build>/testing makes device="simt" find it.
# libquire_cuda.so  the kernels by nvcc for sm_80 and sm_90a, with the CUDA runtime linked statically; QUIRE_CUDA=ON,
#                   or AUTO where nvcc and a driver are found. Files *_sm90*.cu use instructions that only sm_90a has.
set(CMAKE_CUDA_ARCHITECTURES "80-real;90a-real")  # before the language is enabled, which would set a default
file(GLOB cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/cuda/*.cu
     ${PROJECT_SOURCE_DIR}/kernels/cuda/*/*.cu)
# Host code that asks the CUDA runtime, compiled against NVIDIA's headers or the emulation's; the entry of a plugin apart.
file(GLOB cuda_device_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cpp/device/cuda/*.cpp)
set(cuda_plugin_source ${PROJECT_SOURCE_DIR}/cpp/device/cuda/plugin_entry.cpp)
list(REMOVE_ITEM cuda_device_sources ${cuda_plugin_source})

# quire_plugin(<target> <name> <libraries>...): libquire_<name>.so, which exports its entry alone.
function(quire_plugin target name)
  add_library(${target} SHARED ${cuda_plugin_source})
  target_link_libraries(${target} PRIVATE quire_headers quire_base ${ARGN})
  target_compile_definitions(${target} PRIVATE QUIRE_BUILD_VERSION="${PROJECT_VERSION}")
  set_target_properties(${target} PROPERTIES OUTPUT_NAME quire_${name} LINKER_LANGUAGE CXX)
  target_link_options(${target} PRIVATE -Wl,--no-undefined -Wl,--version-script=${PROJECT_SOURCE_DIR}/cmake/plugin.map)
  set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/plugin.map)
endfunction()

if(QUIRE_BUILD_TESTS)
  add_subdirectory(kernels/cuda/simt)
endif()

set(build_cuda ${QUIRE_CUDA})
if(QUIRE_CUDA STREQUAL "AUTO")
  set(build_cuda OFF)
  find_library(QUIRE_CUDA_DRIVER NAMES libcuda.so.1 PATHS /usr/lib64 /usr/lib/wsl/lib)
  find_program(QUIRE_NVIDIA_SMI nvidia-smi)
  if(QUIRE_CUDA_DRIVER OR QUIRE_NVIDIA_SMI)
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
      set(build_cuda ON)
    endif()
  endif()
endif()
message(STATUS "QUIRE_CUDA=${QUIRE_CUDA}: plugin for NVIDIA GPUs ${build_cuda}")

if(build_cuda)
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
    set_target_properties(${target} PROPERTIES CUDA_VISIBILITY_PRESET hidden)
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

  add_library(quire_cuda_device OBJECT ${cuda_device_sources})
  target_link_libraries(quire_cuda_device PUBLIC quire_headers PRIVATE CUDA::cudart_static)

  # quire_link_cuda_device(<target>): links make_cuda_device() for GPUs and all it stands on.
  function(quire_link_cuda_device target)
    quire_link_cuda(${target})
    target_link_libraries(${target} PRIVATE quire_cuda_device)
  endfunction()

  quire_plugin(quire_cuda_plugin cuda ${cuda_targets} quire_cuda_device CUDA::cudart_static)
  if(SKBUILD)
    add_dependencies(quire quire_cuda_plugin)  # wheels build named targets
  endif()
endif()
