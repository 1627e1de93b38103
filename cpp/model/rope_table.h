// The table of cosines and sines of a RopeSpec.
//
// Positions beyond the trained context are handled by the spec's scaling with max_model_len as the one length it
// depends on, never the length of a request: a token's rotation is a function of its position alone (constitution, rule
// 8).
#pragma once

#include <vector>

#include "model/arch.h"

namespace quire {

// [num_positions, rotary_dim]: rotary_dim / 2 cosines, then as many sines, computed in double, stored as float.
std::vector<float> rope_cos_sin(const RopeSpec& rope, int64_t num_positions, int64_t max_model_len);

// Two layers with equal specs share a table.
bool operator==(const RopeSpec& a, const RopeSpec& b);

}  // namespace quire
