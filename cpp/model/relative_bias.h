// From a bias a bucket, as checkpoints have it, to a bias a distance, as attention reads it.
//
// Decides: which bucket a distance is in, by T5's rule (Raffel et al. 2020) for attention to both sides. Does not know:
// names, devices. Load time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/dtype.h"
#include "model/arch.h"

namespace quire {

// Throws InvalidArgument, with the keys of config.json, where the rule makes no sense.
void check_relative_bias(const RelativeBias& spec);

// Distances from -max_distance to max_distance; what lies beyond has the bias of the end.
constexpr int64_t num_relative_distances(const RelativeBias& spec) { return 2 * int64_t{spec.max_distance} + 1; }

// `distance` is the position of the key less that of the query.
int64_t relative_bucket(const RelativeBias& spec, int32_t distance);

// Heads [first_head, first_head + num_heads) of `buckets` [num_buckets, stored_heads] to
// [num_heads, num_relative_distances], elements as they are.
std::vector<std::byte> relative_bias_by_distance(const RelativeBias& spec, const void* buckets, DType dtype,
                                                 int64_t stored_heads, int64_t first_head, int64_t num_heads);

}  // namespace quire
