# How every C++ file of quire is compiled. Gathered on the interface target quire_options.
#
# Results must be the same bits in every build and batch, so nothing here lets the compiler reorder or fuse arithmetic,
# and there is no -march: kernels ask for instruction sets with target attributes and are chosen at run time.
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

get_property(multi_config GLOBAL PROPERTY GENERATOR_IS_MULTI_CONFIG)
if(NOT CMAKE_BUILD_TYPE AND NOT multi_config)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug, Release or RelWithDebInfo" FORCE)
endif()

find_program(QUIRE_CCACHE ccache)
if(QUIRE_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${QUIRE_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${QUIRE_CCACHE})
endif()

find_package(Threads REQUIRED)

add_library(quire_options INTERFACE)
target_compile_features(quire_options INTERFACE cxx_std_20)
# Designated initialisers that name only what differs from the default are how Params and options are written.
target_compile_options(quire_options INTERFACE -Wall -Wextra -Wno-missing-field-initializers -fno-math-errno
                                               -ffp-contract=off)
target_link_libraries(quire_options INTERFACE Threads::Threads ${CMAKE_DL_LIBS})
if(QUIRE_WERROR)
  target_compile_options(quire_options INTERFACE -Werror)
endif()
if(QUIRE_SANITIZE)
  target_compile_options(quire_options INTERFACE -fsanitize=${QUIRE_SANITIZE} -fno-omit-frame-pointer -g1)
  target_link_options(quire_options INTERFACE -fsanitize=${QUIRE_SANITIZE})
endif()
