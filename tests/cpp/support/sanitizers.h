// Whether this program is built with a sanitizer: then tests of the emulation take smaller shapes, because each of its
// steps costs five to fifteen times as much.
#pragma once

namespace quire {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

}  // namespace quire
