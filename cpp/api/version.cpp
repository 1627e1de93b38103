// Says which version of libquire is loaded. It knows nothing of the engine and may be called from any thread.
#include "quire/version.h"

#define QUIRE_STRING_OF(x) #x
#define QUIRE_STRING(x) QUIRE_STRING_OF(x)

namespace quire {

const char* version() noexcept {
  return QUIRE_STRING(QUIRE_VERSION_MAJOR) "." QUIRE_STRING(QUIRE_VERSION_MINOR) "." QUIRE_STRING(QUIRE_VERSION_PATCH);
}

}  // namespace quire
