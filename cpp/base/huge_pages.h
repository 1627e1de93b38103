// What the host backs large memory with where it can, on x86-64 and aarch64 with 4 KB pages.
#pragma once

#include <cstddef>

namespace quire {

constexpr size_t kHugePageBytes = size_t{2} << 20;

}  // namespace quire
