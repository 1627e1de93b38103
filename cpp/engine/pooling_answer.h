// What is done to pooled rows on the host: choice of rows and columns, dimensions, normalization, probabilities.
#pragma once

#include <span>

#include "model/arch.h"
#include "quire/pooling_types.h"

namespace quire {

// Fills output's data, num_rows and num_columns from `rows` (one row, or one a token) of `num_columns` elements.
// `dimensions` shortens vectors before they are normalized. Columns are chosen of answers, not of what is asked for
// without the head.
void finish_answer(const PoolerSpec& pooler, PoolingType type, const PoolingParams& params,
                   std::span<const int32_t> token_ids, std::span<const float> rows, int64_t num_columns,
                   PoolingOutput& output);

}  // namespace quire
