// The launcher of reduce_rows. Asynchronous on the stream; checks its contract and allocates nothing.
#pragma once

#include "params/reduce_rows.h"
#include "params/stream.h"

namespace quire::cuda {

void reduce_rows(const ReduceRowsParams& params, Stream stream);

}  // namespace quire::cuda
