// Which tensor of a checkpoint goes to which rows of which slot: matching of names with an architecture's rules.
//
// Decides: names, shapes, fused parts, tied heads. Does not know: memory layouts, devices. Everything is matched and
// checked before anything is packed, so that a checkpoint that does not fit costs nothing and one message tells all.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "model/arch.h"
#include "model/weight_loader.h"

namespace quire {

// What tensors hold: everything, as those of a checkpoint, or what one rank has of it.
enum class Extent : uint8_t { whole, shard };

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
// `spelling`: which of those that the architecture has. Of a shard, shapes are those of the rank's parts; a tensor that
// it has nothing of, as the first rank has all, keeps its own.
BoundRules bind_rules(const ArchSpec& arch, size_t spelling = 0, Extent extent = Extent::whole);

// The rules that a tensor was found for, in the order of the checkpoint's tensors, which is that of their pages.
// Throws InvalidArgument that lists ALL missing, unexpected and misshaped tensors (both shapes) at once.
std::vector<BoundRule> match_weights(const ArchSpec& arch, const Checkpoint& checkpoint);

// Which of the architecture's spellings most names of a checkpoint fit; the first of equals, 0 where there are none.
size_t best_spelling(const ArchSpec& arch, const Checkpoint& checkpoint);

// Binds tensors that come one at a time, in any order and perhaps not all of them.
class TensorBinder {
 public:
  // `spelling`: the one to look names up in first.
  TensorBinder(const ArchSpec& arch, size_t spelling, Extent extent = Extent::whole);
  // The rule that a tensor is for, with the tensor; null where it is not needed, or does not fit and is noted.
  const BoundRule* bind(const CheckpointTensor& tensor);
  bool has_misfits() const { return !unexpected_.empty() || !twice_.empty() || !misshaped_.empty(); }
  // Notes what a rule does not know.
  void refuse(std::string misshaped) { misshaped_.push_back(std::move(misshaped)); }
  // Throws InvalidArgument that lists them all.
  void throw_if_misfits() const;

 private:
  BoundRule* find(const std::string& name, bool& is_ignored);

  const ArchSpec& arch_;
  Extent extent_;
  std::vector<BoundRules> spellings_;  // the one to prefer first
  std::set<const BoundRule*> seen_;
  std::vector<std::string> unexpected_, twice_, misshaped_;
};

// Where the rows of a tensor for `slot` go; the tensor of the whole model has num_rows of them. Of a shard's ArchSpec:
// those it has, often not all, sometimes none. Where the tensor is a rank's part, they lie there one behind the other.
std::vector<Piece> pieces_of(const ArchSpec& arch, Slot slot, int32_t layer, int64_t num_rows,
                             Extent extent = Extent::whole);

}  // namespace quire
