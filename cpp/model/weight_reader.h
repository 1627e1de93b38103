// Reads weights back under the names and in the shapes of a checkpoint: fused parts apart, element by element.
//
// Decides: names, order, which names share one tensor. Does not know: who looks. Engine thread, while no step is under
// way; memory for a piece of a matrix is taken on the device and given back.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/weight_update.h"

namespace quire {

struct ReadableWeight {
  std::string name;
  std::vector<int64_t> shape;
  std::string same_as;        // the name of the tensor that this one is (a tied head); empty: it is its own
  bool is_elsewhere = false;  // a rank has no part of it; the first one has it and reads for all
};

// Embeddings, layers in order, what comes behind them.
std::vector<ReadableWeight> readable_weights(const WeightAccess& access, Extent extent = Extent::whole);

// The elements of a tensor in the model's dtype, row-major. An int8 weight gives what it stands for. Norm weights that
// are kept with 1 added lose its rounding; buckets of a relative bias that no distance is in are 0. Throws
// InvalidArgument when there is no such name.
std::vector<std::byte> read_weight(const WeightRanks& ranks, const std::string& name);
// What one rank has of it, in the shape that readable_weights() tells of a shard.
std::vector<std::byte> read_shard(const WeightRanks& ranks, size_t rank, const std::string& name);

}  // namespace quire
