# What is installed, for `cmake --install` and for the wheel alike: include/quire, lib/libquire.so (and
# the plugins beside it, which it finds there), lib/cmake/quire.
# In the wheel the prefix is the Python package itself, so site-packages/quire is a prefix for find_package(quire).
# The library has no versioned links, because wheels cannot carry symbolic links.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(QUIRE_LIBDIR ${CMAKE_INSTALL_LIBDIR})
if(SKBUILD)
  set(QUIRE_LIBDIR lib)
endif()
set(cmakedir ${QUIRE_LIBDIR}/cmake/quire)

install(TARGETS quire EXPORT quireTargets COMPONENT quire LIBRARY DESTINATION ${QUIRE_LIBDIR})
if(TARGET quire_cuda_plugin)
  install(TARGETS quire_cuda_plugin COMPONENT quire LIBRARY DESTINATION ${QUIRE_LIBDIR})
endif()
install(DIRECTORY cpp/include/quire DESTINATION include COMPONENT quire FILES_MATCHING PATTERN "*.h")
install(EXPORT quireTargets NAMESPACE quire:: DESTINATION ${cmakedir} COMPONENT quire)

configure_package_config_file(cmake/quireConfig.cmake.in ${PROJECT_BINARY_DIR}/quireConfig.cmake
                              INSTALL_DESTINATION ${cmakedir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/quireConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/quireConfig.cmake ${PROJECT_BINARY_DIR}/quireConfigVersion.cmake
        DESTINATION ${cmakedir} COMPONENT quire)
