// The version of quire and the mark of a public symbol.
//
// This is the only place where the version is written: CMake and the Python package read it from here.
// libquire is built with hidden visibility, so a symbol that applications may call carries QUIRE_API.
#pragma once

#define QUIRE_VERSION_MAJOR 0
#define QUIRE_VERSION_MINOR 1
#define QUIRE_VERSION_PATCH 0

#define QUIRE_API __attribute__((visibility("default")))

namespace quire {

// The version of the library that is loaded, as "major.minor.patch"; the macros above are the version compiled against.
QUIRE_API const char* version() noexcept;

}  // namespace quire
