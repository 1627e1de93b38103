// Launcher of the embedding gather.
#pragma once

#include "params/embedding.h"
#include "params/stream.h"

namespace quire::cuda {

void embedding(const EmbeddingParams& params, Stream stream);

}  // namespace quire::cuda
