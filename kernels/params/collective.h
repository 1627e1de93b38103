// What the ranks of a tensor-parallel group do together: sums over ranks, columns of ranks side by side, one rank's
// bytes for all.
//
// Every rank calls the same collectives in the same order with equal shapes. Sums are taken in float32 in the order of
// the ranks, so a result is the same on every rank, and the same whenever it is computed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quire {

constexpr int kMaxRanks = 8;

// out[i] (+)= the sum over ranks of partial[i], from rank 0 on. `out` may be `partial`, or be apart from it; with
// `accumulate` it holds the same on every rank, and is apart.
struct AllReduceParams {
  const float* partial = nullptr;  // [count]
  float* out = nullptr;            // [count]
  int64_t count = 0;
  bool accumulate = false;
};

// Rank 0's out[r, first_column + c] = part[r, c] of each rank. Columns of ranks do not overlap.
struct GatherColumnsParams {
  const float* part = nullptr;  // [rows, columns]
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t first_column = 0;
  float* out = nullptr;  // of rank 0, rows out_stride elements apart
  int64_t out_stride = 0;
};

}  // namespace quire
