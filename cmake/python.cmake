# The Python module _quire. It links the public symbols of libquire alone.
#
# In the build tree it lies in a copy of the package made of links, <build>/python/quire, so that
# PYTHONPATH=<build>/python runs the sources of python/quire without installing anything.
set(PYBIND11_FINDPYTHON ON)
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
if(NOT pybind11_DIR)
  execute_process(COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir OUTPUT_VARIABLE pybind11_hint
                  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
find_package(pybind11 2.13 CONFIG REQUIRED HINTS ${pybind11_hint})

set(staged_package ${PROJECT_BINARY_DIR}/python/quire)
file(MAKE_DIRECTORY ${staged_package})
file(GLOB package_entries CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/python/quire
     ${PROJECT_SOURCE_DIR}/python/quire/*)
list(REMOVE_ITEM package_entries __pycache__)
foreach(entry IN LISTS package_entries)
  file(CREATE_LINK ${PROJECT_SOURCE_DIR}/python/quire/${entry} ${staged_package}/${entry} SYMBOLIC)
endforeach()

# NO_EXTRAS: link-time optimisation of glue costs build time and buys nothing; the wheel is stripped anyway.
file(GLOB bind_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/python/bind/*.cpp)
if(bind_sources)
  pybind11_add_module(_quire NO_EXTRAS ${bind_sources})
  # Header-only internals (field lists, error types); symbols come from libquire alone.
  target_include_directories(_quire PRIVATE ${PROJECT_SOURCE_DIR}/python ${PROJECT_SOURCE_DIR}/cpp)
  target_link_libraries(_quire PRIVATE quire quire_options)
  set_target_properties(_quire PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${staged_package} INSTALL_RPATH "$ORIGIN/lib")
  if(SKBUILD)
    install(TARGETS _quire COMPONENT quire LIBRARY DESTINATION .)
  endif()
endif()

# Hooks into the internals for the Python tests: linked with the layers themselves, never installed.
file(GLOB testing_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/python/bind/testing/*.cpp)
if(QUIRE_BUILD_TESTS AND testing_sources)
  pybind11_add_module(_quire_testing NO_EXTRAS ${testing_sources})
  target_include_directories(_quire_testing PRIVATE ${PROJECT_SOURCE_DIR}/python)
  quire_link_layers(_quire_testing api)
  set_target_properties(_quire_testing PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/testing)
endif()
