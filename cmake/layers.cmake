# The layers of libquire, lowest first, and the shared library made of them.
#
# A layer is an object library quire_<layer>, so that tests and benchmarks link the objects themselves and see the
# internals that the shared library hides. A layer without sources has no target; see quire_link_layers.
set(QUIRE_LAYERS base kernels device tensor comm model engine api)

# Collects, for each layer, its folder and the one below it: cpp/<layer>/*.cpp and cpp/<layer>/*/*.cpp.
foreach(layer IN LISTS QUIRE_LAYERS)
  if(layer STREQUAL "kernels")
    set(patterns kernels/cpu/*.cpp)
  else()
    set(patterns cpp/${layer}/*.cpp cpp/${layer}/*/*.cpp)
  endif()
  list(TRANSFORM patterns PREPEND ${PROJECT_SOURCE_DIR}/)
  file(GLOB sources_of_${layer} CONFIGURE_DEPENDS ${patterns})
  list(FILTER sources_of_${layer} EXCLUDE REGEX "/cpp/device/cuda/")  # belongs to plugins; see cuda.cmake
endforeach()

# A model family is a file cpp/model/arch/<name>.cpp that defines register_<name>(ArchRegistry&); this writes the list.
if(EXISTS ${PROJECT_SOURCE_DIR}/cpp/model/arch_registry.h)
  file(GLOB families CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/cpp/model/arch
       ${PROJECT_SOURCE_DIR}/cpp/model/arch/*.cpp)
  set(ARCH_DECLARATIONS "")
  set(ARCH_CALLS "")
  foreach(family IN LISTS families)
    string(REGEX REPLACE "\\.cpp$" "" family ${family})
    string(APPEND ARCH_DECLARATIONS "void register_${family}(ArchRegistry& registry);\n")
    string(APPEND ARCH_CALLS "  register_${family}(registry);\n")
  endforeach()
  configure_file(cmake/arch_list.cpp.in ${PROJECT_BINARY_DIR}/generated/model/arch_list.cpp @ONLY)
  list(APPEND sources_of_model ${PROJECT_BINARY_DIR}/generated/model/arch_list.cpp)
endif()

add_library(quire_headers INTERFACE)
target_include_directories(quire_headers INTERFACE ${PROJECT_SOURCE_DIR}/cpp ${PROJECT_SOURCE_DIR}/kernels
                                                   ${PROJECT_SOURCE_DIR}/cpp/include)
target_link_libraries(quire_headers INTERFACE quire_options nlohmann_json::nlohmann_json)

add_library(quire SHARED)
add_library(quire::quire ALIAS quire)
target_compile_features(quire PUBLIC cxx_std_20)
target_include_directories(quire PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/cpp/include>
                                        $<INSTALL_INTERFACE:include>)
target_link_options(quire PRIVATE -Wl,--no-undefined)
target_link_libraries(quire PRIVATE $<BUILD_INTERFACE:quire_options>)

foreach(layer IN LISTS QUIRE_LAYERS)
  if(sources_of_${layer})
    add_library(quire_${layer} OBJECT ${sources_of_${layer}})
    target_link_libraries(quire_${layer} PUBLIC quire_headers)
    target_sources(quire PRIVATE $<TARGET_OBJECTS:quire_${layer}>)
  endif()
endforeach()

# Plugins must be of the build that loads them.
target_compile_definitions(quire_device PRIVATE QUIRE_BUILD_VERSION="${PROJECT_VERSION}")

# quire_link_layers(<target> <layer>): links the objects of that layer and of all below it, so that a test of a lower
# layer which needs a symbol of a higher one fails to link.
function(quire_link_layers target highest)
  target_link_libraries(${target} PRIVATE quire_headers)
  foreach(layer IN LISTS QUIRE_LAYERS)
    if(TARGET quire_${layer})
      target_link_libraries(${target} PRIVATE quire_${layer})
    endif()
    if(layer STREQUAL highest)
      break()
    endif()
  endforeach()
endfunction()
