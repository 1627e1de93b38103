// Which tensor of a checkpoint goes to which rows of which slot: matching of names with an architecture's rules.
//
// Decides: names, shapes, fused parts, tied heads. Does not know: memory layouts, devices. Everything is matched and
// checked before anything is packed, so that a checkpoint that does not fit costs nothing and one message tells all.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/arch.h"
#include "model/weight_loader.h"

namespace quire {

// A rule for one layer (-1: none), and the tensor that was found for it.
struct BoundRule {
  const WeightRule* rule = nullptr;
  int32_t layer = -1;
  std::vector<int64_t> shape;
  const CheckpointTensor* tensor = nullptr;
};

// A run of rows of a stored tensor, or of some of its columns, and where they go.
struct Piece {
  Slot target = Slot::embedding;
  PackPart part = PackPart::whole;
  int64_t source_row = 0;
  int64_t rows = 0;
  int64_t row_begin = 0;  // in the target, or in its gate or up half
  int64_t source_col = 0;
  int64_t cols = 0;  // 0: all of them
};

// By name: what a checkpoint of `arch` must or may hold, without tensors.
using BoundRules = std::map<std::string, BoundRule>;
// `spelling`: which of those that the architecture has.
BoundRules bind_rules(const ArchSpec& arch, size_t spelling = 0);

// The rules that a tensor was found for, in the order of the checkpoint's tensors, which is that of their pages.
// Throws InvalidArgument that lists ALL missing, unexpected and misshaped tensors (both shapes) at once.
std::vector<BoundRule> match_weights(const ArchSpec& arch, const Checkpoint& checkpoint);

// Where the rows of a tensor for `slot` go; the tensor of the whole model has num_rows of them. Of a shard: those it
// has, often not all, sometimes none.
std::vector<Piece> pieces_of(const ArchSpec& arch, Slot slot, int32_t layer, int64_t num_rows);

}  // namespace quire
