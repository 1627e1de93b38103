// Python code that a request brings: its logits processors and the constraint of its text, as hooks of the engine.
//
// The engine calls them on the thread that steps, which holds no GIL; it is taken here, once a call. What they raise
// ends their request.
#pragma once

#include "bind/convert.h"

namespace quire::bind {

// SamplingParams of a dict that may have, beside the fields of the struct,
//   logits_processors  callables of (prompt or None, output, float32 array) -> array or None, with an attribute
//                      wants_prompt
//   constraint         (backend, grammar): grammar.start() gives the state of a sequence, grammar.fork(state) a copy of
//                      one, backend.fill([(state, row),
//                      ...], int32 array [rows, words]) -> [error or None, ...] writes masks, and
//                      backend.commit([(state, token), ...]) -> [(is_last, error or None), ...]
SamplingParams sampling_params(const py::dict& values);
BeamSearchParams beam_search_params(const py::dict& values);  // may have a constraint

// Throws KeyboardInterrupt when a hook raised it since the last call on this thread. Needs the GIL.
void throw_interrupt();

}  // namespace quire::bind
