// Counts the calls of operator new in this test program, so that a test can say "this allocates nothing".
//
// The replacements stand in a file of their own: where the compiler sees them beside a use, it warns of mismatched
// pairs.
#pragma once

#include <cstdint>

namespace quire::testing {

// Since the start of the program, of all threads.
int64_t num_allocations();

}  // namespace quire::testing
